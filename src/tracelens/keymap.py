"""Keys that a user changed, read from ``pyproject.toml`` or a configuration file.

    [tool.tracelens.keymap]       # in pyproject.toml, here or in a directory above
    step = "f11"

    [keymap]                      # in ~/.config/tracelens/config.toml
    step = "f11"

What the project says goes before what the user's own file says.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracelens.errors import ConfigError

_MAX_BYTES = 1 << 20


def default_keys() -> dict[str, str]:
    """Return the keys of the command table, by command; empty where one has none yet."""
    from tracelens.commands import TABLE

    return {spec.name: spec.key for spec in TABLE if spec.only != "prompt"}


def user_keymap(
    defaults: Mapping[str, str] | None = None, directory: Path | None = None
) -> dict[str, str]:
    """Return the keys that the user changed, by command.

    Args:
        defaults: names that may have a key, and that key; the command table's if ``None``.
        directory: where to look for ``pyproject.toml`` from; the working directory if ``None``.

    Raises:
        ConfigError: a file cannot be understood, names an unknown command, or gives one key to two.
            The message is one line.
    """
    known = default_keys() if defaults is None else defaults
    changed: dict[str, str] = {}
    origin: dict[str, Path] = {}
    for path, sections in _files(directory or Path.cwd()):
        for name, key in _section(path, sections).items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                meant = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"{path}: keymap: no command is called {name!r}{meant}")
            if not isinstance(key, str) or not key.strip():
                raise ConfigError(f"{path}: keymap: the key of {name!r} is a text, not {key!r}")
            changed[name] = key.strip()
            origin[name] = path
    owners: dict[str, str] = {}
    for name, keys in {**known, **changed}.items():
        for key in filter(None, (part.strip() for part in keys.split(","))) if keys != "," else ",":
            other = owners.setdefault(key, name)
            if other != name and (name in changed or other in changed):
                path = origin[name if name in changed else other]
                raise ConfigError(f"{path}: keymap: {key!r} is the key of {other!r} and {name!r}")
    return changed


def _files(directory: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """Return the files that exist and where their keymap is, the one that goes before last."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
    own = home / "tracelens" / "config.toml"
    found: list[tuple[Path, tuple[str, ...]]] = [(own, ("keymap",))]
    for above in (directory, *directory.parents):
        if (above / "pyproject.toml").is_file():
            found.append((above / "pyproject.toml", ("tool", "tracelens", "keymap")))
            break
    return [(path, sections) for path, sections in found if path.is_file()]


def _section(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        toml = importlib.import_module("tomllib")
    except ImportError:
        try:
            toml = importlib.import_module("tomli")
        except ImportError:
            return {}  # Python 3.10 reads no TOML of its own: the keys stay as they are
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES).decode()
        # Most projects change no key, and reading their TOML takes a tenth of the time to start.
        table: Any = toml.loads(text) if names[-1] in text else {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    for name in names:
        table = table.get(name) if isinstance(table, dict) else None
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: keymap: names and keys are expected, not {table!r:.60}")
    return table
