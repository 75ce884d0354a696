"""The walk of the zoo's oracle: from the first sink back to the op whose inputs were finite."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent / "fixtures" / "nan_zoo"
FILLS = {"Const", "Fill", "ZerosLike", "OnesLike"}


@dataclass(frozen=True)
class Counts:
    """Non-finite elements of one tensor; ``mask`` if its Infs look written on purpose."""

    nan: int = 0
    inf: int = 0
    mask: bool = False

    @property
    def bad(self) -> bool:
        return bool(self.nan or self.inf)


def count(values: Any) -> Counts:
    """Count NaN and Inf of an array; nothing for what holds no floating-point values."""
    array = np.asarray(values)
    if array.dtype.kind not in "fc" and array.dtype.name != "bfloat16":
        return Counts()
    array = array.astype(np.float64)
    nan, inf = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    rest = array[np.isfinite(array)]
    mask = bool(inf and not nan and (not (array == np.inf).any() or np.unique(rest).size <= 1))
    return Counts(nan, inf, mask)


@dataclass
class Seen:
    """One op as executed; inputs are counts and the index of the op that wrote them, or -1."""

    index: int
    name: str
    line: str
    phase: str
    inputs: list[tuple[Counts, int]] = field(default_factory=list)
    outputs: list[Counts] = field(default_factory=list)
    constant: bool = False

    @property
    def bad(self) -> bool:
        return any(counts.bad for counts in self.outputs)


@dataclass
class Verdict:
    """What the walk found: ``line`` is ``file:number`` relative to the zoo."""

    sink: str
    op: str
    line: str
    kind: str
    phase: str
    step: int


def zoo_line(file: str, number: int) -> str:
    return f"{Path(file).relative_to(ROOT)}:{number}" if file.startswith(str(ROOT)) else ""


def origin(seen: list[Seen], op: Seen, *, want_nan: bool, known: set[int]) -> tuple[Seen, bool]:
    """The op to blame, and whether its bad input came from outside the program's ops."""
    while True:
        known.add(op.index)
        nans = [p for c, p in op.inputs if c.nan]
        infs = [p for c, p in op.inputs if c.inf and not (p < 0 and c.mask)]
        follow = nans if want_nan and nans else infs
        if not follow:
            op.constant |= any(p < 0 and c.mask for c, p in op.inputs)
            return op, False
        written = [p for p in follow if p >= 0 and p not in known]
        if not written:
            return op, any(p < 0 for p in follow)
        before = seen[min(written)]
        if want_nan and not nans:
            made, outside = origin(seen, before, want_nan=False, known=set(known))
            return (op, False) if made.constant and not outside else (made, outside)
        op = before


def judged(seen: list[Seen], sink: tuple[str, int, Counts, int] | None) -> Verdict | None:
    """Walk back from the first sink; ``None`` if nothing non-finite reached one."""
    if sink is None:
        return None
    name, index, counts, step = sink
    if index < 0:
        return Verdict(name, "outside", "", "nan" if counts.nan else "inf", "data", step)
    made, outside = origin(seen, seen[index], want_nan=bool(counts.nan), known=set())
    held = [c for c, _ in made.inputs] if outside else made.outputs
    kind = "nan" if any(c.nan for c in held) else "inf"
    return Verdict(name, made.name, made.line, kind, "data" if outside else made.phase, step)
