"""Collectives and steps compared between ranks: skew, and the rank that the others wait for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.collectives import Collectives, collectives
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import Ints, union

STRAGGLER_SHARE = 0.5
"""A rank that is the last in more than half of the collectives is a straggler."""

STRAGGLER_WAIT = 0.05
"""It is told if the others waited for it for more than this share of their steps."""


@dataclass(frozen=True, slots=True)
class RankLine(Answer):
    """One rank beside the others.

    Attributes:
        rank: its number.
        steps: steps it marked.
        step_ns: median length of its steps; ``None`` without steps.
        comm_ns: time it spent in collectives.
        wait_ns: that of it spent waiting for ranks that came later.
        last: collectives that it was the last to join.
    """

    rank: int
    steps: int
    step_ns: int | None
    comm_ns: int
    wait_ns: int
    last: int


@dataclass(frozen=True, slots=True)
class SkewedCollective(Answer):
    """A collective that some rank joined much later than others.

    Attributes:
        step: training step.
        collective: its name.
        group: process group.
        number: position among the collectives of its group.
        skew_ns: longest wait of a rank in it.
        last_rank: the rank that came last.
    """

    step: int
    collective: str
    group: str
    number: int
    skew_ns: int
    last_rank: int


@dataclass(frozen=True, slots=True)
class RanksAnswer(Answer):
    """All ranks of a run, side by side.

    Attributes:
        ranks: one line each.
        matched: collectives found on every rank of their group.
        skewed: the most skewed of them.
        straggler: the rank that the others wait for; ``None`` if there is none.
        waited_ns: time that it was waited for: of each collective the longest wait of a rank.
        waited_share: of their steps (of the time between their first and last collective, where no
            step is marked).
    """

    ranks: tuple[RankLine, ...]
    matched: int
    skewed: tuple[SkewedCollective, ...]
    straggler: int | None
    waited_ns: int
    waited_share: float


@dataclass(frozen=True)
class _Rank:
    """What is kept of a rank: little, so that many ranks can be compared."""

    rank: int
    found: Collectives | None
    step_ns: Ints | None

    @property
    def length_ns(self) -> int:
        """Its steps, or the time from its first collective to the end of its last."""
        if self.step_ns is not None:
            return int(self.step_ns.sum())
        if self.found is None:
            return 0
        ends = self.found.start_ns + self.found.duration_ns
        return int(ends.max() - self.found.start_ns.min())


def compare_ranks(profiles: Iterable[ProfileData], *, top: int = 10) -> RanksAnswer | None:
    """Compare the ranks of a run; ``None`` if fewer than two of them have collectives.

    The n-th collective of a process group on one rank is the n-th on every other. All ranks leave
    a collective at nearly the same time, so the rank whose collective is the shortest came last,
    and each rank waited ``its duration - the shortest duration``: that needs no common clock.

    Args:
        profiles: one a rank; a generator keeps only one in memory at a time.
        top: the most skewed collectives to return.
    """
    ranks = [_kept(data) for data in profiles]
    found = {one.rank: one.found for one in ranks if one.found is not None}
    if len(found) < 2:
        return None
    waits, caused, last = (dict.fromkeys(found, 0) for _ in range(3))
    skewed, matched = [], 0
    for (group, number), members in _matches(found).items():
        if len(members) < 2 or len({found[rank].name[at] for rank, at in members.items()}) > 1:
            continue
        matched += 1
        times = {rank: int(found[rank].duration_ns[at]) for rank, at in members.items()}
        latest = min(times, key=lambda rank: (times[rank], rank))
        longest = max(times.values()) - times[latest]
        for rank, length in times.items():
            waits[rank] += length - times[latest]
        last[latest] += 1
        caused[latest] += longest
        of_last, at = found[latest], members[latest]
        skewed.append(
            SkewedCollective(
                int(of_last.step[at]), of_last.name[at], group, number, longest, latest
            )
        )
    lines = tuple(_line(one, waits, last) for one in ranks)
    straggler, waited, share = _straggler(ranks, caused, last, matched)
    skewed.sort(key=lambda collective: -collective.skew_ns)
    return RanksAnswer(lines, matched, tuple(skewed[:top]), straggler, waited, share)


def _kept(data: ProfileData) -> _Rank:
    steps = data.steps if data.reader.steps(rank=data.rank) else None
    return _Rank(data.rank, collectives(data), steps.duration_ns if steps is not None else None)


def _matches(found: dict[int, Collectives]) -> dict[tuple[str, int], dict[int, int]]:
    """Return, for each group and number in it, the row of each rank's collective."""
    matches: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for rank, of_rank in found.items():
        numbers: dict[str, int] = defaultdict(int)
        for at, group in enumerate(of_rank.group):
            matches[group, numbers[group]][rank] = at
            numbers[group] += 1
    return matches


def _line(one: _Rank, waits: dict[int, int], last: dict[int, int]) -> RankLine:
    own, steps = one.found, one.step_ns
    comm = union(own.start_ns, own.start_ns + own.duration_ns).total if own else 0
    return RankLine(
        one.rank,
        len(steps) if steps is not None else 0,
        int(np.median(steps)) if steps is not None else None,
        comm,
        waits.get(one.rank, 0),
        last.get(one.rank, 0),
    )


def _straggler(
    ranks: Sequence[_Rank], caused: dict[int, int], last: dict[int, int], matched: int
) -> tuple[int | None, int, float]:
    """Return the rank that cost most, what others waited for it, and that share of their time."""
    worst = max(caused, key=lambda rank: caused[rank])
    lengths = [one.length_ns for one in ranks if one.found is not None and one.rank != worst]
    length = sum(lengths) / len(lengths) if lengths else 0
    share = caused[worst] / length if length else 0.0
    total = sum(caused.values())
    is_one = (
        matched > 0
        and share > STRAGGLER_WAIT
        and (last[worst] > STRAGGLER_SHARE * matched or caused[worst] > STRAGGLER_SHARE * total)
    )
    return (worst if is_one else None), caused[worst] if is_one else 0, share if is_one else 0.0
