"""Small texts for people: durations, sizes, numbers, aligned tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_NS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"))
_BYTES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as aligned text; columns of numbers are aligned to the right.

    Examples:
        >>> print(table(["op", "count"], [["mm", 3], ["relu", 12]]))
        op    count
        mm        3
        relu     12
    """
    cells = [[_cell(value) for value in row] for row in rows]
    values = [list(column) for column in zip(*cells, strict=False)] or [[] for _ in columns]
    widths = [max(map(len, [name, *column])) for name, column in zip(columns, values, strict=True)]
    numeric = [bool(column) and all(map(_is_numeric, column)) for column in values]
    lines = []
    for row in [list(columns), *cells]:
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def duration(duration_ns: float | None) -> str:
    """Return a duration for people.

    Examples:
        >>> duration(1_530_000), duration(None)
        ('1.53 ms', '-')
    """
    return _scaled(duration_ns, _NS, "ns")


def size(size_bytes: float | None) -> str:
    """Return a size for people.

    Examples:
        >>> size(2048)
        '2.00 KiB'
    """
    return _scaled(size_bytes, _BYTES, "B")


def number(value: float) -> str:
    """Return a number with as many digits as help.

    Examples:
        >>> number(0.123456), number(65504.0), number(3e38)
        ('0.1235', '65504', '3e+38')
    """
    return f"{value:.6g}" if abs(value) >= 1000 else f"{value:.4g}"


def printable(text: str) -> str:
    """Escape control characters: those of a trace must not reach the terminal.

    Examples:
        >>> printable("a" + chr(27) + "[0m") == "a" + chr(92) + "x1b[0m"
        True
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _scaled(value: float | None, units: Sequence[tuple[int, str]], smallest: str) -> str:
    if value is None:
        return "-"
    for factor, unit in units:
        if value >= factor:
            return (
                f"{value / factor:.3g} {unit}"
                if value >= 100 * factor
                else (f"{value / factor:.2f} {unit}")
            )
    return f"{value:.0f} {smallest}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(str(value))


def _is_numeric(text: str) -> bool:
    head = text.split(" ")[0]
    try:
        float(head.rstrip("%"))
    except ValueError:
        return text == "-"
    return True
