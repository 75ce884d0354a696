"""Help and documentation, made from the command table."""

from __future__ import annotations

from collections.abc import Iterator

from tracelens import filters
from tracelens.command import CommandError, CommandSpec
from tracelens.commands import TABLE, find
from tracelens.predicates import QUANTITIES


def help_lines(topic: str, width: int = 100) -> list[str]:
    """Return help on one command, or the list of all.

    Raises:
        CommandError: there is no such command.
    """
    if topic == "expressions":
        return [*_expressions(), "", "quantities:", *_quantities()]
    if topic:
        spec = find(topic)
        if spec is None:
            raise CommandError(f"no command is called {topic!r} (`help` lists them)")
        return [spec.usage, f"  {spec.help}", *(f"  {line}" for line in spec.more), *_keys(spec)]
    lines = []
    for group, specs in groups():
        lines.append(f"{group}:")
        for spec in specs:
            if spec.only != "tui":
                lines.append(f"  {' '.join((spec.name, *spec.aliases)):28} {spec.help}"[:width])
    return [
        *lines,
        "",
        "An empty line repeats a move. `help COMMAND` and `help expressions` tell more.",
    ]


def page() -> str:
    """Return docs/commands.md."""
    lines = [
        "# Commands",
        "",
        "<!-- Made by `python -m tracelens.commands > docs/commands.md`. -->",
        "",
        "The same commands work as keys and in the `:` line of `tracelens view`, at the prompt of",
        "`tracelens debug`, and, under the names of the column *Pdb++*, at the debugger's own",
        'prompt while a program stands still (`nonfinite="break"`, `tl.breakpoint()`,',
        "`pytest --pdb`).",
    ]
    for group, specs in groups():
        lines += ["", f"## {group}", "", "| command | alias | key | Pdb++ | what it does |"]
        lines.append("|---|---|---|---|---|")
        for spec in specs:
            cells = (
                _code(f"{spec.name} {spec.arguments}".strip()),
                " ".join(_code(alias) for alias in spec.aliases),
                _code(spec.key),
                _code(spec.pdb_name),
                spec.help + (" (TUI only)" if spec.only == "tui" else ""),
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## Expressions",
        "",
        "`break`, `watch`, `find`, `filter` and `list-tensors` take:",
    ]
    lines += ["", "```text", *_expressions(), "```", "", "Quantities that can be compared:", ""]
    lines += ["| quantity | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {quantity.meaning} |" for name, quantity in QUANTITIES.items()]
    return "\n".join(lines) + "\n"


def groups() -> Iterator[tuple[str, list[CommandSpec]]]:
    """Yield the commands under their headings, in order."""
    for group in dict.fromkeys(spec.group for spec in TABLE):
        yield group, [spec for spec in TABLE if spec.group == group]


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def _keys(spec: CommandSpec) -> list[str]:
    told = [f"key {spec.key} in the TUI"] if spec.key else []
    told += [f"{spec.pdb_name} at (Pdb++)"] if spec.pdb_name else []
    return [f"  {', '.join(told)}"] if told else []


def _expressions() -> list[str]:
    """Return the table of expressions, which is the documentation of ``filters``."""
    body = (filters.__doc__ or "").partition("\n\n")[2].partition("\n\n")[0]
    return [line.removeprefix("    ") for line in body.splitlines()]


def _quantities() -> list[str]:
    return [f"  {name:10} {quantity.meaning}" for name, quantity in QUANTITIES.items()]
