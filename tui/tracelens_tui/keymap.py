"""Every key of the application, in one table: the commands' and those of the screens alone.

Keys of commands come from ``tracelens.commands.TABLE``. A user changes a key in ``pyproject.toml``
(``[tool.tracelens.keymap]``) or ``~/.config/tracelens/keymap.toml``: ``"step" = "f11"``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from textual.binding import Binding, BindingType


@dataclass(frozen=True, slots=True)
class Key:
    """A key that is no command of the table.

    Attributes:
        id: the name by which a keymap changes it.
        keys: Textual's names of the keys, separated by commas.
        action: what it does.
        help: one phrase.
        shown: how the key is written in help; derived from ``keys`` if empty.
        footer: its word in the footer; it is not there if empty.
    """

    id: str
    keys: str
    action: str
    help: str
    shown: str = ""
    footer: str = ""


TUI_KEYS = (
    Key("finding.next", "right_square_bracket", "finding(1)", "next finding", "]", "finding"),
    Key("finding.previous", "left_square_bracket", "finding(-1)", "previous finding", "["),
    Key("step.next", "right_curly_bracket", "train_step(1)", "next training step", "}"),
    Key("step.previous", "left_curly_bracket", "train_step(-1)", "previous training step", "{"),
    Key("why", "e", "why", "why: the chain from first cause to sink", "e", "why"),
    Key("search", "slash", "prompt('/')", "search", "/", "search"),
    Key("match.next", "full_stop", "match(1)", "next match", "."),
    Key("match.previous", "comma", "match(-1)", "previous match", ","),
    Key("filter", "f", "prompt('f')", "filter the ops", "f", "filter"),
    Key("filter.clear", "F", "clear_filter", "show all ops", "F"),
    Key("line", "colon", "prompt(':')", "type a command", ":"),
    Key("goto", "g,ctrl+g", "prompt('g')", "go to an op, step or mark", "g ^g"),
    Key("mark", "m", "prompt('m')", "set a bookmark", "m"),
    Key("jump", "apostrophe", "prompt('g', \"'\")", "go to a bookmark", "'"),
    Key("screen.ops", "1", "screen('ops')", "ops: the stepper"),
    Key("screen.modules", "2", "screen('modules')", "modules"),
    Key("screen.tensor", "3", "screen('tensor')", "tensor values"),
    Key("screen.timeline", "4", "screen('timeline')", "timeline"),
    Key("screen.findings", "5", "screen('findings')", "findings"),
    Key("screen.compare", "6", "screen('compare')", "compare two traces"),
    Key("screen.runs", "0", "screen('runs')", "runs of this directory"),
    Key("pane.next", "tab", "focus_next", "next pane"),
    Key("pane.previous", "shift+tab", "focus_previous", "previous pane"),
    Key("zoom", "z", "zoom", "zoom the focused pane"),
    Key("follow.pause", "space", "toggle_follow", "pause or go on following a live trace"),
    Key("copy", "y", "copy", "copy this op (OSC 52, works over SSH)"),
    Key("export", "E", "export", "export what is shown"),
    Key("screenshot", "f8", "shot", "save a screenshot (SVG)"),
    Key("theme", "T", "next_theme", "next theme: dark, light, ansi"),
    Key("palette", "ctrl+p", "command_palette", "all commands"),
    Key("help", "question_mark,f1", "help", "help for the focused pane", "?", "help"),
    Key("back", "escape", "back", "close, cancel, back to the ops"),
    Key("quit", "q", "quit", "quit", "q", "quit"),
)
"""Keys that are no commands of the prompt."""


_SIGNS = {
    "right_square_bracket": "]",
    "left_square_bracket": "[",
    "right_curly_bracket": "}",
    "left_curly_bracket": "{",
    "slash": "/",
    "full_stop": ".",
    "comma": ",",
    "colon": ":",
    "apostrophe": "'",
    "question_mark": "?",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "exclamation_mark": "!",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "escape": "esc",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the palette and the help.

    Attributes:
        title: its name.
        shown: its key as people write it; empty if it has none.
        help: one phrase.
        action: Textual's action.
    """

    title: str
    shown: str
    help: str
    action: str


def shown(key: str) -> str:
    """Return a key as people write it.

    >>> shown("right_square_bracket"), shown("ctrl+p"), shown("s")
    (']', '^p', 's')
    """
    return _SIGNS.get(key, key.replace("ctrl+", "^"))


def entries() -> list[Entry]:
    """Return everything a key or the palette can do, commands first."""
    return [entry for _, group in _groups() for entry in group]


def by_group() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return (title, [(key, help)]) for the help page."""
    return [
        (title, [(entry.shown or f":{entry.title}", entry.help) for entry in group])
        for title, group in _groups()
    ]


def _groups() -> list[tuple[str, list[Entry]]]:
    everywhere = [
        Entry(
            key.help, key.shown or " ".join(map(shown, key.keys.split(","))), key.help, key.action
        )
        for key in TUI_KEYS
    ]
    return [("everywhere", everywhere)]


def bindings() -> list[BindingType]:
    """Return the application's bindings, those of the command table first."""
    made: list[BindingType] = []
    for key in TUI_KEYS:
        made.append(
            Binding(
                key.keys,
                key.action,
                key.footer or key.help,
                show=bool(key.footer),
                key_display=key.shown or None,
                id=key.id,
            )
        )
    return made


def user_keymap() -> dict[str, str]:
    """Return the keys that the user changed; faults in the file are passed over."""
    found: dict[str, str] = {}
    home = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config"))
    for path, section in (
        (home / "tracelens" / "keymap.toml", ()),
        (Path("pyproject.toml"), ("tool", "tracelens", "keymap")),
    ):
        table = _toml(path)
        for name in section:
            table = table.get(name, {}) if isinstance(table, dict) else {}
        if isinstance(table, dict):
            found |= {k: v for k, v in table.items() if isinstance(v, str)}
    return found


def _toml(path: Path) -> dict[str, object]:
    if sys.version_info < (3, 11):
        return {}
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
