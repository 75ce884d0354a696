"""``sample=True``: what the host's Python was doing, from py-spy in a process beside this one.

py-spy looks 100 times a second and stops the program for some 0.1 ms each time. It writes a Chrome
trace of its own at the end, which is read here and handed to the sealer as rows of ``samples``.

The step of a sample: a decorated step is run through a function that is called ``tl_step_<n>``, so
that every stack taken in it carries its number, whatever the clocks say. Where a loop marks its
steps itself there is no frame of ours around them: then a sample's time tells its step, counted
from when py-spy was started, which is some milliseconds off. A note in the trace says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens.stacks import StacksError, denial, py_spy
from tracelens.storage.columns import Masked

if TYPE_CHECKING:
    from tracelens.session import Session

RATE_HZ = 100
"""At 100 Hz the median step of 4.5 ms took 3 % longer, at 1000 Hz 28 %."""

_FINISH_S = 60.0
_PR_SET_PTRACER = 0x59616D61
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
# The shell waits until this process has allowed it to look, then becomes py-spy: the id stays.
_WHEN_TOLD = 'read _ && exec "$0" "$@"'


class Sampler:
    """py-spy beside one recording.

    Args:
        session: the recording.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._directory = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._began_ns = 0
        self._steps: list[int] = []
        self._starts: list[int] = []
        self._tagged = False

    def start(self) -> None:
        """Begin to sample; what stands in the way is noted in the trace."""
        try:
            tool = py_spy()
            self._directory = tempfile.mkdtemp(prefix="tracelens-samples-")
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WHEN_TOLD, tool, "record", "--pid", str(os.getpid()),
                 "--format", "chrometrace", "--rate", str(RATE_HZ), "--threads", "--idle",
                 "--full-filenames", "--output", self._output],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is the program's: it ends py-spy itself
            )  # fmt: skip
        except (StacksError, OSError) as error:
            self._note(f"the host is not sampled: {error}", "warning")
            self._clean()
            return
        allow_tracing(self._process.pid)
        self._began_ns = self._session.writer.now_ns()
        self._tell_to_begin(self._process)

    def begin_step(self, step: int) -> None:
        """A step begins."""
        self._steps.append(step)
        self._starts.append(self._session.writer.now_ns())

    def after_step(self, step: int) -> None:
        """A step has ended: tell if py-spy has too."""
        if self._process is not None and self._process.poll() is not None:
            self.stop()

    def tagged(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a step's function that runs under a name that tells the step."""

        def step(*args: Any, **kwargs: Any) -> Any:
            if self._process is None:
                return function(*args, **kwargs)
            self._tagged = True
            return named_after(self._session.current_step)(function, args, kwargs)

        return step

    def stop(self) -> None:
        """End py-spy and hand its samples over."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            try:
                told = process.communicate(timeout=_FINISH_S)[1].decode("utf-8", "replace")
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                told = f"py-spy did not end within {_FINISH_S:.0f} s"
            allow_tracing(0)
            if Path(self._output).exists():
                self._write(Path(self._output).read_bytes())
            else:
                self._note(f"the host was not sampled: {denial(os.getpid(), told)}", "warning")
        except Exception as error:
            told = f"samples of the host are lost: {type(error).__name__}: {error}"
            self._note(told.splitlines()[0][:300], "warning")
        finally:
            self._clean()

    def abandon(self) -> None:
        """In a forked child: py-spy is the parent's."""
        self._process = None

    @property
    def _output(self) -> str:
        return str(Path(self._directory) / "samples.json")

    def _tell_to_begin(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(b"\n")
            process.stdin.flush()

    def _write(self, data: bytes) -> None:
        from tracelens.convert.pyspy import read_chrome
        from tracelens.convert.pyspy_samples import Samples

        samples, problems = Samples(), list[str]()
        read_chrome(data, samples, problems)
        rows = _Rows()
        samples.write(rows)  # type: ignore[arg-type]
        if rows.columns and not self._session.writer.spool({"samples": self._placed(rows.columns)}):
            self._note("samples of the host are lost: no room on the disk", "warning")
        for problem in problems[:1]:
            self._note(f"samples of the host: {problem}", "warning")
        if not self._tagged:
            told = (
                "samples of the host: their steps are told by time, some milliseconds off; "
                "decorate the step with @tl.trace to have them exact"
            )
            self._note(told, "info")

    def _placed(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Return the columns with times of the trace, and steps where no frame tells them."""
        t_ns = np.asarray(getattr(columns["t_ns"], "values", columns["t_ns"])) + self._began_ns
        step = columns["step"]
        values = np.asarray(getattr(step, "values", step))
        null = np.asarray(getattr(step, "null", np.zeros(len(values), dtype=bool)))
        if not self._tagged and self._starts:
            at = np.searchsorted(np.array(self._starts), t_ns, side="right") - 1
            values = np.where(at >= 0, np.array(self._steps)[at.clip(0)], 0)
            null = at < 0
        duration_ns = np.asarray(columns["duration_ns"])
        # Equal stacks in a row are one change of the stack: as many samples as fit into its time.
        count = np.maximum(1, (duration_ns * RATE_HZ + 500_000_000) // 1_000_000_000)
        return {**columns, "t_ns": t_ns, "step": Masked(values, null), "count": count}

    def _note(self, message: str, severity: str) -> None:
        self._session.note("sample", message, severity)

    def _clean(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class _Rows:
    """Takes the one table that is written."""

    def __init__(self) -> None:
        self.columns: dict[str, Any] = {}

    def write(self, name: str, columns: dict[str, Any]) -> None:
        self.columns = columns

    def event(self, kind: str, **fields: Any) -> None:
        """The recording writes its own steps."""


def named_after(step: int) -> Callable[..., Any]:
    """Return a function that calls its first argument, under the name of a step.

    py-spy reads names from code objects: their names, or from Python 3.11 on their qualified ones.
    """
    name = f"tl_step_{step}"
    names = {"co_name": name}
    if hasattr(_run.__code__, "co_qualname"):
        names["co_qualname"] = name
    return FunctionType(_run.__code__.replace(**names), globals(), name)  # type: ignore[arg-type]


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    __tracebackhide__ = True
    return function(*args, **kwargs)


def allow_tracing(pid: int) -> None:
    """Let a process trace this one, where Yama asks for that; 0 takes it back.

    With ``ptrace_scope`` 1 a process may trace its descendants only, and py-spy is a child.
    """
    try:
        if _YAMA.read_text().strip() != "1":
            return
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PTRACER, pid, 0, 0, 0)
    except (OSError, AttributeError):
        return
