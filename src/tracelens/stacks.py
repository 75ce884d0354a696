"""The Python stacks of a running process, and the step and op that its live trace is at."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracelens.errors import EXIT_UNREADABLE, TraceError, TraceLensError
from tracelens.events import Op
from tracelens.frames import package_of
from tracelens.storage.manifest import LIVE_DIR

_DUMP_TIMEOUT_S = 30.0
_MAPPED = re.compile(r"(/.*)\.(?:ring|strings|events)")


class StacksError(TraceLensError):
    """The stacks of a process cannot be had: it is gone, or py-spy is missing."""


class StacksDenied(StacksError):
    """The process may not be read."""

    exit_code = EXIT_UNREADABLE


@dataclass(frozen=True, slots=True)
class StackFrame:
    """One frame of a thread.

    Attributes:
        function: its name.
        file: its path.
        line: 1-based line that runs.
        package: what it belongs to if it is not the user's own code (``"torch"``, ``"python"``).
    """

    function: str
    file: str
    line: int
    package: str = ""


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread of a process, its innermost frame first."""

    pid: int
    name: str
    tid: int
    active: bool
    holds_gil: bool
    frames: tuple[StackFrame, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a live trace has come.

    Attributes:
        trace: its path.
        rank: the process's rank.
        step: training step of the last op; ``None`` if there is none yet.
        last_op: the op that ended last among those recorded.
        idle_ns: time since it ended; ``None`` if it is not known.
        ops: ops recorded and still there.
    """

    trace: Path
    rank: int
    step: int | None
    last_op: Op | None
    idle_ns: int | None
    ops: int


def dump(pid: int, *, subprocesses: bool = False) -> list[Thread]:
    """Return the Python threads of a process, by py-spy.

    Args:
        pid: the process.
        subprocesses: also those of the processes that it started.

    Raises:
        StacksError: there is no such process, it runs no Python, or py-spy is not installed.
        StacksDenied: it may not be read (ptrace).
    """
    if not is_running(pid):
        raise StacksError(f"no process {pid} is running")
    tool = py_spy()
    command = [tool, "dump", "--pid", str(pid), "--json", *(["--subprocesses"] * subprocesses)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DUMP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise StacksError(f"process {pid} did not answer within {_DUMP_TIMEOUT_S:.0f} s") from None
    except OSError as error:
        raise StacksError(f"{tool} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        raise denial(pid, done.stderr)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        raise StacksError(f"py-spy answered something odd about process {pid}") from None
    return [_thread(each) for each in told if isinstance(each, dict)]


def is_running(pid: int) -> bool:
    """Whether a process exists."""
    if not 0 < pid < 1 << 31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def trace_of(pid: int) -> Path | None:
    """Return the trace that a process writes, found among its open files; ``None`` if none is."""
    names = []
    directory = Path(f"/proc/{pid}/fd")
    try:
        for link in directory.iterdir():
            try:
                names.append(str(link.readlink()))
            except OSError:
                continue
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        maps = ""
    names += [line[line.index("/") :] for line in maps.splitlines() if "/" in line]
    for name in names:
        found = _MAPPED.fullmatch(name)
        live = Path(name).parent
        if found is not None and live.name == LIVE_DIR:
            return live.parent
    return None


def progress_of(trace: Path, pid: int | None = None) -> Progress:
    """Return how far a trace has come.

    Args:
        trace: its path.
        pid: whose shard; the first one if ``None`` or if no shard is that process's.

    Raises:
        TraceError: the trace cannot be read.
    """
    from tracelens.storage.reader import open_trace

    with open_trace(trace) as reader:
        shards = reader.shards()
        if not shards:
            raise TraceError(f"{trace}: nothing has been recorded yet")
        shard = next((each for each in shards if each.pid == pid), shards[0])
        count = reader.count_ops(shard.rank)
        last = reader.ops_at(max(0, count - 32), count, rank=shard.rank)
        now_ns = time.time_ns() - reader.manifest.epoch_unix_ns
    if not last:
        return Progress(trace, shard.rank, None, None, None, 0)
    # A composite op ends after those it called, whose ids are above its own.
    ended = max(last, key=lambda op: op.start_ns + (op.duration_ns or 0))
    idle_ns = now_ns - ended.start_ns - (ended.duration_ns or 0)
    return Progress(trace, shard.rank, ended.step, ended, max(0, idle_ns), count)


def py_spy() -> str:
    """Return where py-spy is.

    Raises:
        StacksError: it is not installed.
    """
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise StacksError("py-spy is not installed: pip install 'tracelens-toolkit[debug]'")
    return found


def denial(pid: int, told: str) -> StacksError:
    """Return why py-spy failed on a process, with what to do, from what it told on stderr."""
    text = told.lower()
    if "permission denied" in text or "operation not permitted" in text or "eperm" in text:
        return StacksDenied(
            f"process {pid} may not be read: run as its user or root, or allow ptrace "
            f"(sysctl kernel.yama.ptrace_scope=0; in a container, --cap-add SYS_PTRACE)"
        )
    if not is_running(pid) or "no such process" in text or "no such file" in text:
        return StacksError(f"no process {pid} is running")
    first = told.strip().splitlines()
    line = first[0].removeprefix("Error: ") if first else "py-spy failed"
    if "python" in line.lower() and ("version" in line.lower() or "interpreter" in line.lower()):
        line += " (is it a Python program?)"
    return StacksError(f"process {pid}: {line[:200]}")


def _thread(told: dict[str, Any]) -> Thread:
    frames = told.get("frames")
    return Thread(
        pid=_whole(told.get("pid")),
        name=str(told.get("thread_name") or "?"),
        tid=_whole(told.get("os_thread_id")),
        active=bool(told.get("active")),
        holds_gil=bool(told.get("owns_gil")),
        frames=tuple(_frame(each) for each in frames or () if isinstance(each, dict)),
    )


def _frame(told: dict[str, Any]) -> StackFrame:
    file = str(told.get("filename") or "?")
    line = _whole(told.get("line"))
    return StackFrame(str(told.get("name") or "?"), file, line, package_of(file))


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def thread_lines(thread: Thread, *, everything: bool = False) -> list[str]:
    """Return a thread's stack, innermost first; frames that are not the user's in one line.

    Args:
        thread: the thread.
        everything: show every frame.
    """
    state = "running" if thread.active else "waiting"
    gil = ", holds the GIL" if thread.holds_gil else ""
    lines = [f"thread {thread.tid} {thread.name!r} ({state}{gil})"]
    skipped: list[StackFrame] = []
    for frame in thread.frames:
        if frame.package and not everything:
            skipped.append(frame)
            continue
        lines += _skipped(skipped)
        skipped = []
        lines.append(f"  {frame.function}  {frame.file}:{frame.line}")
    return lines + _skipped(skipped)


def _skipped(frames: Sequence[StackFrame]) -> list[str]:
    if not frames:
        return []
    packages = ", ".join(dict.fromkeys(frame.package for frame in frames))
    inner = frames[0]
    count = "1 frame" if len(frames) == 1 else f"{len(frames)} frames"
    return [f"  … {count} of {packages}, at {inner.function} {Path(inner.file).name}:{inner.line}"]
