"""How one test is judged: options, ini file and markers put together, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from tracelens.analysis.names import canonical, display


@dataclass(frozen=True, slots=True)
class Policy:
    """How one test is judged.

    Attributes:
        fails: a finding fails the test.
        inf: an Inf is a finding, not only a NaN.
        backward: what a backward pass makes is a finding too.
        ignore: patterns of ops, modules or ``file:line`` whose findings are left out.
        trace: every op is recorded, and the trace kept.
        meant: non-finite values are meant: they are no findings at all.
    """

    fails: bool
    inf: bool
    backward: bool
    ignore: tuple[str, ...]
    trace: bool
    meant: bool

    @classmethod
    def of(
        cls,
        config: pytest.Config,
        marker: pytest.Mark | None,
        *,
        fails: bool,
        trace: bool,
        meant: bool,
    ) -> Policy:
        """Put options and the arguments of a ``no_nan`` marker together.

        Raises:
            UsageError: the marker has arguments that it does not take.
        """
        told = _arguments(marker)
        inf = config.getoption("nan_inf")
        if inf is None:
            inf = config.getini("tracelens_inf")
        ignore = told.get("ignore", ())
        return cls(
            fails=fails,
            inf=bool(told.get("inf", inf)),
            backward=bool(told.get("backward", True)),
            ignore=(
                *config.getini("tracelens_ignore"),
                *(config.getoption("nan_ignore") or ()),
                *((ignore,) if isinstance(ignore, str) else ignore),
            ),
            trace=trace,
            meant=meant,
        )

    def counts(self, finding: Mapping[str, Any], root: Path) -> bool:
        """Tell whether a finding is one for this test.

        Args:
            finding: as ``cause.explain`` makes it.
            root: where pytest's paths begin.
        """
        first = finding.get("first_cause") or {}
        sink = finding.get("sink") or {}
        if self.meant or finding.get("severity") != "error":
            return False
        if not self.inf and finding.get("kind") == "inf":
            return False
        if not self.backward and "backward" in (first.get("phase"), _seen_in(finding)):
            return False
        if not self.backward and sink.get("sink") == "gradient":
            return False
        names = names_of(first, root)
        return not any(fnmatchcase(name, pattern) for name in names for pattern in self.ignore)


def names_of(first: Mapping[str, Any], root: Path) -> list[str]:
    """Return all that a pattern may name a first cause by.

    Args:
        first: the ``first_cause`` of a finding.
        root: where pytest's paths begin.
    """
    op = str(first.get("op") or "")
    names = [op, display(op), canonical(op), str(first.get("module") or "")]
    frame = first.get("source")
    if frame:
        path = Path(frame["file"])
        files = {frame["file"], path.name, relative(path, root)}
        names += [*files, *(f"{file}:{frame['line']}" for file in files)]
    return [name for name in names if name]


def relative(path: Path, root: Path) -> str:
    """Return a path as pytest shows it: from its root if it lies below, else whole."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return str(path)


def _seen_in(finding: Mapping[str, Any]) -> str:
    path = finding.get("path") or ()
    return str(path[-1].get("phase")) if path else ""


def _arguments(marker: pytest.Mark | None) -> Mapping[str, Any]:
    if marker is None:
        return {}
    unknown = set(marker.kwargs) - {"inf", "ignore", "backward"}
    if marker.args or unknown:
        raise pytest.UsageError(
            f"no_nan takes inf=, ignore= and backward= only, not "
            f"{', '.join([*map(repr, marker.args), *sorted(unknown)])}"
        )
    ignore = marker.kwargs.get("ignore", ())
    patterns = ignore if isinstance(ignore, list | tuple) else (ignore,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise pytest.UsageError(f"no_nan: ignore= is a pattern or a list of them, not {ignore!r}")
    return marker.kwargs
