"""The debugger in a running program: pdb++ (or pdb) with the commands of the table.

``nonfinite="break"`` and ``tl.breakpoint()`` stop at the user's own frame; ``pytest --pdb
--pdbcls=tracelens.debugger:Debugger`` lands on the user's line. At ``(Pdb++)`` the commands ``lt``,
``pt``, ``oi``, ``why`` … work on what has been recorded so far.
"""

from __future__ import annotations

import bdb
import importlib
import sys
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from tracelens.errors import NonFiniteError
from tracelens.frames import HIDDEN_MODULES, at_line, is_users, package_of, runs_in, user_frame
from tracelens.recording import Recording, latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracelens.command import CommandSpec
    from tracelens.session import Session
    from tracelens.storage.reader import TraceReader

_NO_STOP = -1
"""``Bdb.stoplineno`` after ``continue``: nothing but a breakpoint stops."""


class Quit(bdb.BdbQuit, NonFiniteError):
    """The user quit at a prompt: the program ends.

    It is a ``NonFiniteError`` too, because hooks that let nothing else through let that through.
    """


class TensorCommands:
    """What TraceLens adds to a debugger class: commands, hidden frames, the user's frame first.

    Attributes:
        recording: what the commands work on; found when the first of them runs.
    """

    recording: Recording | None = None
    curframe: FrameType | None
    _release: Callable[[], None] | None = None

    def _is_hidden(self, frame: FrameType) -> bool:
        """Tell pdb++ which frames not to show (`hf_unhide` shows them)."""
        hidden: bool = super()._is_hidden(frame)  # type: ignore[misc]
        return hidden or not is_users(frame)

    def setup(self, frame: FrameType | None, traceback: TracebackType | None) -> Any:
        """Stand at a frame; what the program recorded since the last time is looked at again."""
        if self.recording is not None:
            self.recording.stale = True
        return super().setup(frame, traceback)  # type: ignore[misc]

    def get_stack(
        self, frame: FrameType | None, traceback: TracebackType | None
    ) -> tuple[list[tuple[FrameType, int]], int]:
        """Return the stack and the entry to stand at: after an exception the user's last."""
        stack, index = super().get_stack(frame, traceback)  # type: ignore[misc]
        if frame is None:
            while index > 0 and not is_users(stack[index][0]):
                index -= 1
            if not is_users(stack[index][0]):
                index = len(stack) - 1
        return stack, index

    def stop_here(self, frame: FrameType) -> bool:
        """Whether stepping stops in a frame: not in what a framework calls, but in the user's."""
        outer: FrameType | None = frame
        while outer is not None:
            if not is_users(outer):
                return False
            # What a library calls is as far from the user as the library is.
            outer = outer.f_back if package_of(outer.f_code.co_filename) else None
        stops: bool = super().stop_here(frame)  # type: ignore[misc]
        return stops

    def set_continue(self) -> None:
        """Let the program run; a test runner captures its output again."""
        super().set_continue()  # type: ignore[misc]
        self._give_back()

    def set_quit(self) -> None:
        """End the program; a test runner captures its output again."""
        super().set_quit()  # type: ignore[misc]
        self._give_back()
        _tell_quit_in_one_line()

    def _give_back(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()

    def _run_tracelens(self, spec: CommandSpec, arguments: str) -> bool | None:
        """Run a command of the table and print what it says; true leaves the prompt."""
        from tracelens.errors import TraceLensError

        try:
            self.recording = self.recording or latest()
            context = self.recording.context(self._local)
            answer = spec.run(context, arguments)
        except TraceLensError as error:
            self.error(str(error))  # type: ignore[attr-defined]
            return None
        for line in answer.lines:
            self.message(line)  # type: ignore[attr-defined]
        return self._to_tui() if answer.request == "tui" else None

    def _local(self, expression: str) -> Any:
        """Evaluate an expression in the frame that the prompt stands at."""
        from tracelens.command import CommandError

        frame = self.curframe
        if frame is None:
            raise CommandError("no frame is chosen")
        try:
            return eval(expression, frame.f_globals, frame.f_locals)
        except Exception as error:
            raise CommandError(f"{expression}: {type(error).__name__}: {error}") from None

    def _to_tui(self) -> bool | None:
        """Show the TUI at the op; it may let the program go on, or end it."""
        from tracelens import faces

        assert self.recording is not None
        asked = faces.show_paused(self.recording.path, self.recording.op_id)
        if asked == faces.GO_ON:
            self.set_continue()
            return True
        if asked == faces.GIVE_UP:
            self.set_quit()
            return True
        return None


def __getattr__(name: str) -> Any:
    if name != "Debugger":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = _make_class()
    globals()[name] = made
    return made


def _make_class() -> type[Any]:
    """Return pdb++'s class, or pdb's where it is missing, with our commands."""
    try:
        base = importlib.import_module("pdbpp").Pdb
        members: dict[str, Any] = {}
    except ImportError:
        base = importlib.import_module("pdb").Pdb
        # pdb shows every frame, and so asks no one.
        members = {"_is_hidden": lambda self, frame: False}
    from tracelens.commands import TABLE

    for spec in TABLE:
        if spec.pdb_name:
            members[f"do_{spec.pdb_name}"] = _method(spec)
    return type("Debugger", (TensorCommands, base), members)


def _method(spec: CommandSpec) -> Callable[[TensorCommands, str], bool | None]:
    def do(self: TensorCommands, arguments: str) -> bool | None:
        return self._run_tracelens(spec, arguments)

    do.__name__ = f"do_{spec.pdb_name}"
    do.__doc__ = "\n".join(
        (f"{spec.pdb_name} {spec.arguments}".strip(), f"\t{spec.help}", *spec.more)
    )
    return do


def stop(session: Session, finding: dict[str, Any], report: str = "") -> None:
    """Open the prompt where the user's code is, with the commands at the first cause.

    An op of a TensorFlow graph was built by a line that runs no more: the prompt then stands at
    that line, with the recorded tensors as ``inputs`` and ``outputs``; `up` leads to the running
    call.

    Args:
        session: the live recording.
        finding: what made it stop.
        report: what to print about it first, on stderr.

    Raises:
        BdbQuit: the user quit.
    """
    frame = user_frame(sys._getframe(1))
    if frame is None:
        return
    first = finding.get("first_cause") or {}
    recording = Recording(session.path, session.rank, int(first.get("op_id", -1)))
    source = first.get("source") or {}
    file, line = source.get("file"), source.get("line")
    function = str(source.get("function") or "")
    if (
        isinstance(file, str)
        and isinstance(line, int)
        and _of_a_graph(session, first)
        and not runs_in(frame, file, line, function)
    ):
        note = f"this line built {first.get('op')}; `up` leads to the call that runs now"
        report = f"{report}\ntracelens: {note}"
        running = frame
        at_line(
            file,
            line,
            function,
            recording.values(),
            lambda there: _interact(there, recording, running, report),
        )
    else:
        _interact(frame, recording, frame, report)


def stop_at(frame: FrameType) -> None:
    """Open the prompt at a frame (``tl.breakpoint()``).

    Raises:
        BdbQuit: the user quit.
    """
    _interact(user_frame(frame) or frame, None, frame)


def can_stop() -> bool:
    """Whether this thread runs code of the user's that a prompt can stand in."""
    return user_frame(sys._getframe(1)) is not None


def prompt(reader: TraceReader, *, at: int | None = None, rank: int = 0) -> int:
    """Hold a conversation about a recorded trace in this terminal (the TUI's door to the prompt).

    Args:
        reader: the trace.
        at: id of the op to start at.
        rank: whose ops.

    Returns:
        The id of the op that the conversation ended at, -1 in an empty trace.
    """
    from tracelens.command import Context
    from tracelens.cursor import Cursor
    from tracelens.prompt import Prompt, typed_lines

    cursor = Cursor(reader, rank)
    if at is not None:
        cursor.goto(op_id=at)
    conversation = Prompt(Context(cursor))
    conversation.greet()
    conversation.loop(typed_lines())
    return cursor.op_id


def _tell_quit_in_one_line() -> None:
    """Let the exception that ends the program after `quit` be told without a traceback."""
    before = sys.excepthook
    if getattr(before, "tells_quit", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, bdb.BdbQuit):
            sys.stderr.write("tracelens: quit from the debugger\n")
        else:
            before(kind, error, trace)

    hook.tells_quit = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def _of_a_graph(session: Session, first_cause: dict[str, Any]) -> bool:
    """Whether an op may belong to a graph, whose lines ran when it was built and not since.

    PyTorch's ops have a namespace, TensorFlow's have none.
    """
    if first_cause.get("compiled"):
        return True
    backends = {backend.name for backend in session.backends}
    return "tensorflow" in backends and "::" not in str(first_cause.get("op"))


def _interact(
    frame: FrameType, recording: Recording | None, running: FrameType, report: str = ""
) -> None:
    """Hold the prompt at a frame, then go on in the way that was asked for.

    Args:
        frame: where the prompt stands.
        recording: what the commands work on.
        running: the frame in which `next` and `step` go on.
        report: what to print first.
    """
    from tracelens.capture import released
    from tracelens.control import stand_still
    from tracelens.session import current

    goes_on = stand_still(report, -1 if recording is None else recording.op_id)
    if goes_on is not None:
        if not goes_on:
            raise Quit("ended from the terminal interface")
        return
    # First, because a debugger keeps the stdout that it finds.
    release = released()
    debugger = sys.modules[__name__].Debugger(skip=HIDDEN_MODULES)
    debugger.reset()
    debugger.recording = recording
    debugger._release = release
    thread = threading.current_thread()
    if thread is not threading.main_thread():
        report += f"\ntracelens: the program stands still in the thread {thread.name}"
    if report:
        sys.stderr.write(report.strip() + "\n")
    session = current()
    if session is None:
        debugger.interaction(frame, None)
    else:
        session.judge.standing = True
        try:
            with session.observers.muted():
                debugger.interaction(frame, None)
        finally:
            session.judge.standing = False
    if debugger.quitting:
        raise Quit("quit from the debugger")
    if debugger.stoplineno != _NO_STOP:
        _step_on(debugger, running, at_graph=frame is not running)


def _step_on(debugger: Any, frame: FrameType, *, at_graph: bool) -> None:
    """Trace the running frame and those that called it, as ``Bdb.set_trace`` does."""
    if at_graph:
        debugger.set_next(frame)
    outer: FrameType | None = frame
    while outer is not None:
        outer.f_trace = debugger.trace_dispatch
        debugger.botframe = outer
        outer = outer.f_back
    sys.settrace(debugger.trace_dispatch)
