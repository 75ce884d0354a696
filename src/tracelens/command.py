"""What a command is: its name, its keys, its help, and what it is given and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracelens.errors import ConfigError

if TYPE_CHECKING:
    from tracelens.cursor import Cursor, Stop
    from tracelens.filters import Filter


class CommandError(ConfigError):
    """A command cannot do what it was asked to; the message is one line."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has to say, whichever face asked.

    Attributes:
        lines: text to show, without colour.
        moved: the cursor may be somewhere else now.
        stop: the move that was made.
        request: what the face itself has to do: ``"quit"``, ``"tui"``, ``"debug"``, or nothing.
        error: the command was refused; ``lines`` says why.
    """

    lines: tuple[str, ...] = ()
    moved: bool = False
    stop: Stop | None = None
    request: str = ""
    error: bool = False


@dataclass(slots=True)
class Context:
    """What a command works on; one per open prompt or screen.

    Attributes:
        cursor: the position, breakpoints and marks.
        width: columns of text that fit.
        frame: which of the op's frames ``up`` and ``down`` have chosen, 0 its own.
        search: the last condition searched for.
        last: the last line run, which an empty line repeats.
        local: evaluates an expression in the frame of a paused program and returns its value;
            ``None`` where no program is paused.
    """

    cursor: Cursor
    width: int = 100
    frame: int = 0
    search: Filter | None = None
    last: str = ""
    local: Callable[[str], Any] | None = None


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """One command of every face.

    Attributes:
        name: what it is called everywhere.
        help: one sentence.
        run: does it, given the context and the text after the name; refuses with a
            ``TraceLensError``.
        group: heading that it stands under in help and documentation.
        aliases: other names at the prompt.
        key: key in the TUI (``"S"``, ``"ctrl+g"``), empty for none.
        key_arguments: arguments that the key passes.
        asks: the key first asks for arguments.
        pdb_name: name at the debugger's own prompt, empty for none.
        arguments: what may follow the name, for the help.
        more: further lines of help.
        only: ``"tui"`` for what makes sense there only, ``"prompt"`` likewise; else empty.
    """

    name: str
    help: str
    run: Callable[[Context, str], Answer]
    group: str
    aliases: tuple[str, ...] = ()
    key: str = ""
    key_arguments: str = ""
    asks: bool = False
    pdb_name: str = ""
    arguments: str = ""
    more: tuple[str, ...] = field(default=())
    only: str = ""

    @property
    def usage(self) -> str:
        """The name, its aliases and its arguments in one line."""
        return f"{' | '.join((self.name, *self.aliases))} {self.arguments}".rstrip()


def number_argument(text: str, what: str, default: int) -> int:
    """Return a whole number given as an argument.

    Raises:
        CommandError: it is not one.
    """
    text = text.strip()
    if not text:
        return default
    if not text.isdecimal() or len(text) > 18:
        raise CommandError(f"{what} is a whole number, not {text!r}")
    return int(text)


def moved(context: Context, stop: Stop) -> Answer:
    """Return the answer of a move: where it ended, and why there."""
    from tracelens.optext import stop_lines

    context.frame = 0
    return Answer(tuple(stop_lines(context.cursor, stop)), moved=True, stop=stop)
