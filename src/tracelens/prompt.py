"""The prompt on a trace: reads lines, runs them by the command table, prints the answers."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from tracelens import commands
from tracelens.analysis.ansi import Paint
from tracelens.command import Answer, Context
from tracelens.errors import EXIT_OK, EXIT_USAGE
from tracelens.optext import position_lines

if TYPE_CHECKING:
    from tracelens.cursor import Cursor

PROMPT = "(tracelens) "

_QUIET_S = 0.3
"""A search that takes longer tells its progress."""

_REDRAW_S = 0.1


class Prompt:
    """A conversation about one trace.

    Args:
        context: the position; its commands' answers are printed.
        out: where answers go.
        color: whether to colour them.
    """

    def __init__(self, context: Context, *, out: TextIO | None = None, color: bool = False) -> None:
        self.context = context
        self._out = out or sys.stdout
        self._paint = Paint(color)
        self.failed = False
        """Whether the last line was refused."""

    def greet(self) -> None:
        """Print where the cursor is."""
        self.show(Answer(tuple(position_lines(self.context.cursor))))

    def loop(self, lines: Iterable[str]) -> str:
        """Run lines until one asks to leave.

        Returns:
            What the face has to do: ``"quit"`` or ``"tui"``; ``"quit"`` at the end of the lines.
        """
        for line in lines:
            request = self.run(line)
            if request:
                return request
        return "quit"

    def run(self, line: str) -> str:
        """Run one line and print its answer; returns what it asks the face to do."""
        try:
            with _progress(self.context.cursor):
                answer = commands.run_line(self.context, line)
        except KeyboardInterrupt:
            # A move is made when its search has ended, so the position is where it was.
            answer = Answer(("cancelled",), error=True)
        self.failed = answer.error
        self.show(answer)
        return answer.request

    def show(self, answer: Answer) -> None:
        """Print an answer."""
        paint = self._paint
        for line in answer.lines:
            if answer.error:
                line = paint(line, "red")
            elif line.startswith(("  -> ", "-> ")):
                line = paint(line, "cyan")
            elif " nan of " in line or " inf of " in line or line.startswith("finding: "):
                line = paint(line, "red")
            elif line.startswith(("breakpoint ", "watch ")):
                line = paint(line, "yellow")
            encoding = getattr(self._out, "encoding", None) or "utf-8"
            self._out.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        self._out.flush()


def typed_lines() -> Iterator[str]:
    """Yield the lines that a person types, with history and completion, until ^D.

    ^C gives up the line.
    """
    with _readline():
        while True:
            try:
                line = input(PROMPT)
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                continue
            except EOFError:
                sys.stdout.write("\n")
                return
            yield line


def converse(context: Context, *, color: bool, script: Iterable[str] | None = None) -> int:
    """Hold a conversation at the terminal, or run a script; returns the exit code.

    Args:
        context: the position.
        color: whether to colour the answers.
        script: lines to run instead of asking for them; one that is refused ends it with the
            exit code of wrong usage.
    """
    prompt = Prompt(context, color=color)
    if script is not None:
        for line in script:
            request = prompt.run(line)
            if prompt.failed:
                return EXIT_USAGE
            if request:
                return _leave(context, request)
        return EXIT_OK
    prompt.greet()
    return _leave(context, prompt.loop(typed_lines()))


def _leave(context: Context, request: str) -> int:
    if request != "tui":
        return EXIT_OK
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.stderr.write("tracelens: the terminal interface needs a terminal\n")
        return EXIT_USAGE
    from tracelens.faces import load_face

    return load_face("tui")(str(context.cursor.reader.path), at=context.cursor.op_id)


@contextlib.contextmanager
def _progress(cursor: Cursor) -> Iterator[None]:
    """Tell on stderr how far a slow search is, where a person can see it."""
    if not sys.stderr.isatty():
        yield
        return
    started = drawn = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - started > _QUIET_S and now - drawn > _REDRAW_S:
            drawn = now
            sys.stderr.write(f"\r{done:,} of {total:,} ops (^C stops) ")
            sys.stderr.flush()

    cursor.progress = tell
    try:
        yield
    finally:
        cursor.progress = None
        if drawn != started:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextlib.contextmanager
def _readline() -> Iterator[None]:
    """Set up history and completion for ``input``, and give back what was set up before."""
    try:
        import readline
    except ImportError:
        yield
        return
    from tracelens.history import history_file

    before = readline.get_completer(), readline.get_completer_delims()
    file = history_file()
    with contextlib.suppress(OSError):
        if file is not None:
            readline.read_history_file(file)
    readline.set_completer(_complete)
    readline.set_completer_delims(" \t\n()=<>~")
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if file is not None:
                readline.write_history_file(file)
        readline.set_completer(before[0])
        readline.set_completer_delims(before[1])


def _complete(text: str, state: int) -> str | None:
    """Return the ``state``-th completion of a word: a command first, then words of filters."""
    import readline

    first = readline.get_begidx() == 0
    words = commands.names() if first else _filter_words()
    matches = [word + " " for word in words if word.startswith(text) and word[0].isalpha()]
    matches += [word for word in words if word.startswith(text) and not word[0].isalpha()]
    return matches[state] if state < len(matches) else None


def _filter_words() -> list[str]:
    from tracelens.filters import WORDS

    return [*WORDS, *commands.names()]
