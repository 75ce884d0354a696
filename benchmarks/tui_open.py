"""How soon `tracelens view` paints its first rows, what it holds in memory, how quick its keys are.

Everything runs on a real pseudo-terminal of 120x40, from `exec` of Python on. Beside it an empty
Textual application is started in the same turn, so that the ratio holds on any machine. Times of a
key are from writing it to the first output that shows its effect.

    python benchmarks/tui_open.py [--ops 1000 10000000] [--rounds 5] [--keep DIRECTORY]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

ROWS, COLUMNS = 40, 120
PATIENCE_S = 60.0
EMPTY = """
from textual.app import App
from textual.widgets import Static
class Empty(App):
    def compose(self):
        yield Static("READY")
Empty().run()
"""


class Terminal:
    """A child on a pseudo-terminal of our own; what it writes is thrown away but looked at."""

    def __init__(self, command: list[str]) -> None:
        self.started = time.perf_counter()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor")
            for name in ("NO_COLOR", "COLUMNS", "LINES"):
                os.environ.pop(name, None)
            os.execv(command[0], command)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.seen = b""

    def read(self, seconds: float) -> bytes:
        ready, _, _ = select.select([self.fd], [], [], seconds)
        try:
            data = os.read(self.fd, 1 << 16) if ready else b""
        except OSError:
            data = b""
        self.seen += data
        return data

    def until(self, text: bytes) -> float:
        """Return the seconds since the start at which a text was written."""
        while text not in self.seen:
            self.read(0.5)
            if time.perf_counter() - self.started > PATIENCE_S:
                raise SystemExit(f"waited in vain for {text!r}: {self.seen[-2000:]!r}")
        return time.perf_counter() - self.started

    def settle(self, quiet_s: float = 0.4) -> None:
        while self.read(quiet_s):
            pass

    def key(self, data: bytes) -> float:
        """Press a key; return the seconds until the screen begins to change."""
        self.seen = b""
        started = time.perf_counter()
        os.write(self.fd, data)
        while not self.seen:
            self.read(5.0)
            if time.perf_counter() - started > 5.0:
                break
        seconds = time.perf_counter() - started
        self.settle(0.08)
        return seconds

    def resident_mb(self) -> float:
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def open_times(command: list[str], text: bytes, rounds: int) -> tuple[list[float], float]:
    """Return the seconds to a text of several starts, and the memory then (MB)."""
    times, resident = [], 0.0
    for _ in range(rounds):
        terminal = Terminal(command)
        times.append(terminal.until(text))
        resident = max(resident, terminal.resident_mb())
        terminal.close()
    return times, resident


def key_times(command: list[str], text: bytes, presses: int) -> dict[str, list[float]]:
    """Return the seconds of each key."""
    terminal = Terminal(command)
    terminal.until(text)
    terminal.settle(1.0)
    keys = {
        "page down": b"\x1b[6~", "down": b"j", "page up": b"\x1b[5~", "step": b"s",
        "reverse step": b"S", "next finding": b"]", "previous page": b"\x1b[5~",
        "last (end)": b"\x1b[F", "first (home)": b"\x1b[H", "last op (G)": b"G",
        "reverse continue": b"C",
    }  # fmt: skip
    found: dict[str, list[float]] = {}
    for name, data in keys.items():
        for at in range(presses):
            if name in ("next finding", "reverse continue") and at:
                terminal.key(b"\x1b[H" if name == "next finding" else b"G")
            found.setdefault(name, []).append(terminal.key(data))
    print(f"  after the keys: {terminal.resident_mb():.0f} MB resident")
    terminal.close()
    return found


def ms(times: list[float]) -> str:
    low, middle = min(times) * 1e3, statistics.median(times) * 1e3
    return f"{low:6.0f} ms min {middle:6.0f} ms median (n={len(times)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", type=int, nargs="+", default=[1_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--presses", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="make the traces here, or use those that are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        empty = [sys.executable, "-c", EMPTY]
        base, resident = open_times(empty, b"READY", options.rounds)
        print(f"empty Textual application: {ms(base)}, {resident:.0f} MB")
        tracelens = str(Path(sys.executable).with_name("tracelens"))
        for n_ops in options.ops:
            trace = folder / f"{n_ops}.tltrace"
            if not trace.exists():
                maker = Path(__file__).with_name("make_trace.py")
                subprocess.run(
                    [sys.executable, str(maker), str(trace), "--ops", str(n_ops)],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
            command = [tracelens, "view", str(trace)]
            times, resident = open_times(command, b"aten::embedding", options.rounds)
            ratio = min(times) / min(base)
            print(f"{n_ops:,} ops: first rows {ms(times)}, {ratio:.2f}x, {resident:.0f} MB")
            for name, each in key_times(command, b"aten::embedding", options.presses).items():
                each.sort()
                p95 = each[min(len(each) - 1, int(0.95 * len(each)))]
                middle = statistics.median(each)
                print(f"  {name:18} {middle * 1e3:6.1f} ms median {p95 * 1e3:6.1f} ms p95")


if __name__ == "__main__":
    main()
