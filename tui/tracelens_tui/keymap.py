"""Every key of the application, in one table: the commands' and those of the screens alone.

Keys of commands come from ``tracelens.commands.TABLE``. A user changes a key in ``pyproject.toml``
(``[tool.tracelens.keymap]``) or ``~/.config/tracelens/config.toml`` (``[keymap]``):
``step = "f11"``.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding, BindingType

from tracelens.command import CommandSpec
from tracelens.commands import TABLE


@dataclass(frozen=True, slots=True)
class Key:
    """A key and what it does.

    Attributes:
        id: the name by which a keymap changes it; a command's own name.
        keys: Textual's names of the keys, separated by commas; may be empty for a command.
        action: Textual's action.
        help: one phrase.
        group: heading in the help.
        footer: its word in the footer; it is not there if empty.
    """

    id: str
    keys: str
    action: str
    help: str
    group: str = "Screens and panes"
    footer: str = ""

    @property
    def shown(self) -> str:
        """The keys as people write them."""
        return " ".join(shown(key) for key in self.keys.split(",") if key)


_SCREEN_KEYS = (
    Key("screen.ops", "1", "screen('ops')", "ops: the stepper"),
    Key("screen.modules", "2", "screen('modules')", "modules: time and health as a tree"),
    Key("screen.tensor", "3", "screen('tensor')", "tensor: values, heatmap, histogram"),
    Key("screen.timeline", "4", "screen('timeline')", "timeline: curves over steps, lanes in one"),
    Key("screen.findings", "5", "screen('findings')", "findings, the worst first"),
    Key("screen.compare", "6", "screen('compare')", "compare two traces"),
    Key("screen.profile", "7", "screen('profile')", "profile: where time and memory went"),
    Key("screen.runs", "0", "screen('runs')", "runs of this directory"),
    Key("line", "colon", "prompt(':')", "type a command"),
    Key("filter.clear", "F", "clear_filter", "show all ops again"),
    Key("follow", "G", "follow", "the last op; follow a live trace"),
    Key("rank.next", "K", "next_rank", "the next rank (process) of the run"),
    Key("pane.next", "tab", "app.focus_next", "next pane"),
    Key("pane.previous", "shift+tab", "app.focus_previous", "previous pane"),
    Key("screenshot", "f8", "shot", "save a picture of the screen (SVG)"),
    Key("theme", "T", "next_theme", "next theme: dark, light, ansi"),
    Key("palette", "ctrl+p", "command_palette", "all commands by name"),
    Key("program.output", "O", "output", "what the program beside us prints", "Live"),
    Key("program.go_on", "ctrl+r", "program(64)", "let the paused program go on", "Live"),
    Key("program.give_up", "ctrl+x", "program(65)", "end the paused program", "Live"),
    Key("back", "escape", "back", "close, cancel a search, back to the ops"),
)
"""Keys that are no commands."""

_OWN_ACTIONS = {
    "goto": "prompt('g')",
    "mark": "prompt('m')",
    "jump": "prompt('g', \"'\")",
    "find": "prompt('/')",
    "find-next": "match(1)",
    "find-previous": "match(-1)",
    "filter": "prompt('f')",
    "print-tensor": "screen('tensor')",
    "zoom": "zoom",
    "pause": "toggle_follow",
    "copy": "copy",
    "export": "export",
    "why": "why",
    "help": "help",
    "quit": "quit",
    "debug": "debug",
}
"""Commands that this face answers with a pane, a screen or a prompt instead of lines of text."""

_MORE_KEYS = {"goto": "g", "help": "f1"}
_FOOTER = {
    "step": "step",
    "reverse-step": "back",
    "next-finding": "finding",
    "why": "why",
    "find": "search",
    "filter": "filter",
    "help": "help",
    "quit": "quit",
}
_NAMES = {",": "comma"}
_SIGNS = {
    "comma": ",",
    "colon": ":",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "escape": "esc",
    "question_mark": "?",
}


def shown(key: str) -> str:
    """Return a key as people write it.

    >>> shown("comma"), shown("ctrl+p"), shown("s")
    (',', '^p', 's')
    """
    return _SIGNS.get(key, key.replace("ctrl+", "^"))


def all_keys() -> list[Key]:
    """Return everything that a key or the palette can do, commands first."""
    return [*(_key_of(spec) for spec in TABLE if spec.only != "prompt"), *_SCREEN_KEYS]


def _key_of(spec: CommandSpec) -> Key:
    # Digits are the screens here: the table gives them to commands that a screen stands for.
    own = "" if spec.key.isdigit() else _NAMES.get(spec.key, spec.key)
    more = _MORE_KEYS.get(spec.name, "")
    action = _OWN_ACTIONS.get(spec.name)
    if action is None:
        line = f"{spec.name} {spec.key_arguments}".strip()
        action = f"prompt(':', '{spec.name} ')" if spec.asks else f"command('{line}')"
    return Key(
        spec.name,
        ",".join(part for part in (own, more) if part),
        action,
        spec.help.rstrip("."),
        spec.group,
        _FOOTER.get(spec.name, ""),
    )


def groups() -> dict[str, list[Key]]:
    """Return the keys under the headings of the help."""
    found: dict[str, list[Key]] = {}
    for key in all_keys():
        found.setdefault(key.group, []).append(key)
    return found


def bindings() -> list[BindingType]:
    """Return the application's bindings."""
    return [
        Binding(
            key.keys,
            key.action,
            key.footer or key.help,
            show=bool(key.footer),
            key_display=shown(key.keys.split(",")[0]),
            id=key.id,
        )
        for key in all_keys()
        if key.keys
    ]


def user_keymap() -> dict[str, str]:
    """Return the keys that the user changed.

    Raises:
        ConfigError: a file cannot be understood, names an unknown key, or gives one key to two.
    """
    from tracelens.keymap import user_keymap as read

    return read({key.id: key.keys for key in all_keys()})
