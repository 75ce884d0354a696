"""The whole thing in a real terminal (tmux): from a NaN to its cause and out again."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

_PATIENCE_S = 30.0


class Terminal:
    """A tmux server of our own with one window of 100x30."""

    def __init__(self, socket: Path, command: list[str], folder: Path) -> None:
        self._socket = str(socket)
        unset = [word for name in ("NO_COLOR", "COLUMNS", "LINES") for word in ("-u", name)]
        shell = f"{shlex.join(command)}; echo LEFT $?; sleep 60"
        size = ["-x", "100", "-y", "30"]
        self._tmux("new-session", "-d", *size, "-c", str(folder), "env", *unset, "sh", "-c", shell)

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, "-f", "/dev/null", *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.stdout

    def keys(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    def text(self) -> str:
        return self._tmux("capture-pane", "-p")

    def until(self, *texts: str) -> str:
        end = time.monotonic() + _PATIENCE_S
        while not all(text in (shown := self.text()) for text in texts):
            if time.monotonic() > end:
                pytest.fail(f"waited in vain for {texts}:\n{shown}")
            time.sleep(0.05)
        return shown

    def kill(self) -> None:
        subprocess.run(
            ["tmux", "-S", self._socket, "kill-server"], check=False, capture_output=True
        )


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*words: str) -> Terminal:
        command = [sys.executable, "-m", "tracelens", *words]
        opened.append(Terminal(tmp_path / "tmux", command, tmp_path))
        return opened[-1]

    yield open_one
    for each in opened:
        each.kill()


def test_from_a_nan_to_its_cause_back_to_the_data_and_out_to_a_file(
    tensor_trace: Path, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal("view", str(tensor_trace))
    screen.until("op 1/24", "✖ 1 finding")

    screen.keys("]")  # the first cause, in one key
    screen.until("op 20/24", "13▶", "torch.exp(y)", "in 0")
    screen.keys("e")  # why, in two
    screen.until("◆ aten::exp", "◎ loss", "clamp its input")
    screen.keys("Escape")

    for position, name in (("18", "relu"), ("17", "linear"), ("16", "mse_loss")):
        screen.keys("<")
        screen.until(f"op {position}/24", f"aten::{name}")
    screen.keys("c")  # on to the finding again
    screen.until("op 20/24")
    screen.keys("S")
    screen.until("op 19/24")
    screen.keys("s", "3")
    screen.until("1 NaN, 1 +Inf of 768")
    screen.keys("E", "Enter")
    screen.until("written to")
    screen.keys("q")
    screen.until("LEFT 0")

    assert np.isnan(np.load(tensor_trace.with_name("out0-step2.npy"))[5, 7])


def test_the_prompt_and_the_screens_switch_into_each_other(
    nan_trace: Path, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal("view", str(nan_trace))
    screen.until("op 1/24")
    screen.keys("]")
    screen.until("op 20/24")
    screen.keys("D")
    screen.until("(tracelens)")
    screen.keys("reverse-step 2", "Enter")
    screen.until("aten::relu")
    screen.keys("q", "Enter")
    screen.until("op 18/24")
    screen.keys("q")
    screen.until("LEFT 0")


_TRAINING = """
import torch

torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    p = model(torch.ones(2, 4)).softmax(-1)
    if step == 2:
        p = p - p.max()
    loss = -(p * torch.log(p)).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print("trained step", step)
"""


@pytest.mark.parametrize(
    ("key", "code", "printed"), [("C-r", 0, "trained step 2"), ("C-x", 1, "trained step 1")]
)
def test_a_run_that_stops_at_a_nan_is_inspected_then_goes_on_or_ends(
    tmp_path: Path, terminal: Callable[..., Terminal], key: str, code: int, printed: str
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "train.py").write_text(_TRAINING, encoding="utf-8")
    screen = terminal(
        "run", "--live", "--capture", "ops", "--nonfinite", "break", "-o", "x.tltrace", "train.py"
    )
    screen.until("PROGRAM PAUSED", "aten::log", "12▶")
    screen.keys("<")  # it can be looked into while the program stands still
    screen.until("aten::sub")
    screen.keys(key)
    if code == 0:  # the bad gradient is a stop of its own, before the optimizer applies it
        screen.until("✖ 2 findings", "PROGRAM PAUSED")
        screen.keys(key)
    screen.until(f"the program has ended: exit code {code}")
    screen.keys("O")
    shown = screen.until("output: x.tltrace.log", printed)
    assert ("trained step 2" in shown) == (code == 0)
    screen.keys("q")
    screen.until("1 ops")
    screen.keys("q")
    screen.until(f"LEFT {code}")


def test_a_trace_that_is_not_there_is_one_line_and_exit_code_3(
    tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    screen = terminal("view", str(tmp_path / "none.tltrace"))

    # The terminal breaks the line wherever the path happens to end.
    assert "nosuchtrace" in "".join(screen.until("LEFT 3").split())


def test_without_a_terminal_it_says_what_to_use_instead(nan_trace: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tracelens", "view", str(nan_trace)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert "needs a terminal" in done.stderr
