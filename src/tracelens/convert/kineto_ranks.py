"""Which rank a profile is of, when its clock starts, and which ranks are missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_RANK = 99_999
_IN_NAME = re.compile(r"(?:^|[^a-z])(?:rank|worker|r)[-_]?(\d{1,6})(?:\D|$)", re.IGNORECASE)
_NUMBER = {
    "base": re.compile(r'"baseTimeNanoseconds"\s*:\s*"?(\d{1,19})'),
    "rank": re.compile(r'"distributedInfo"\s*:\s*\{[^}]*?"rank"\s*:\s*(\d{1,6})'),
    "world": re.compile(r'"distributedInfo"\s*:\s*\{[^}]*?"world_size"\s*:\s*(\d{1,7})'),
}
_UNIX_2001_NS, _UNIX_2200_NS = 978_307_200_000_000_000, 7_258_118_400_000_000_000


@dataclass(frozen=True, slots=True)
class About:
    """What a profile says of itself.

    Attributes:
        rank: of the process, ``None`` if it does not say.
        world_size: processes of the run, 0 if it does not say.
        base_ns: Unix time that its times count from, 0 if they are Unix times or unknown.
        host: where it ran.
        devices: names of its devices, by number.
    """

    rank: int | None = None
    world_size: int = 0
    base_ns: int = 0
    host: str = ""
    devices: tuple[str, ...] = ()

    @classmethod
    def of(cls, head: bytes, rest: bytes) -> About:
        """Read what stands before and after the events.

        Args:
            head: ``{"schemaVersion": 1, ...,`` without an end.
            rest: ``, "traceName": "..."}`` or nothing.
        """
        before, after = head.decode("utf-8", "replace"), rest.decode("utf-8", "replace")
        told = _loaded(before.rstrip().rstrip(",") + "}")
        told |= _loaded("{" + after.lstrip(", \r\n\t"))
        info = told.get("distributedInfo")
        info = info if isinstance(info, dict) else {}
        both = before + after
        properties = told.get("deviceProperties")
        return cls(
            _most(_whole(info.get("rank"), _found("rank", both)), MAX_RANK),
            _most(_whole(info.get("world_size"), _found("world", both)), MAX_RANK + 1) or 0,
            _whole(told.get("baseTimeNanoseconds"), _found("base", both)) or 0,
            str(told.get("host_name") or ""),
            tuple(
                str(each.get("name", "")) if isinstance(each, dict) else ""
                for each in (properties if isinstance(properties, list) else [])
            ),
        )


def rank_in_name(name: str) -> int | None:
    """Return the rank that a file's name tells, ``None`` if it tells none.

    Examples:
        >>> rank_in_name("rank-34.Jul_15_10_52_41.1074.pt.trace.json.gz"), rank_in_name("a.json")
        (34, None)
    """
    found = _IN_NAME.findall(Path(name).name)
    return int(found[0]) if found and int(found[0]) <= MAX_RANK else None


def is_unix(time_ns: int) -> bool:
    """Tell whether a time can be a Unix time."""
    return _UNIX_2001_NS < time_ns < _UNIX_2200_NS


def missing(ranks: Iterable[int], world_size: int) -> list[int]:
    """Return the ranks of a run that are not among those given."""
    return sorted(set(range(world_size)) - set(ranks))


def ranges_text(numbers: Sequence[int]) -> str:
    """Return numbers as text, runs of them shortened.

    Examples:
        >>> ranges_text([1, 2, 3, 7])
        '1-3, 7'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _found(what: str, text: str) -> int | None:
    found = _NUMBER[what].search(text)
    return int(found[1]) if found else None


def _most(number: int | None, most: int) -> int | None:
    """Return a number unless no run can have it."""
    return number if number is None or number <= most else None


def _whole(value: Any, other: int | None) -> int | None:
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    return value if type(value) is int and 0 <= value < 1 << 62 else other


def _loaded(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
