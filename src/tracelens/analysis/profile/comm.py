"""Collectives of one rank: how long, how fast, how much of it was not hidden by computing."""

from __future__ import annotations

from dataclasses import dataclass

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.collectives import Collectives, collectives
from tracelens.analysis.profile.columns import durations
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import union
from tracelens.analysis.ranks.waits import bus_factor


@dataclass(frozen=True, slots=True)
class CollectiveGroup(Answer):
    """Collectives of one kind, size, element type and process group.

    Attributes:
        collective: ``allreduce``, ``allgather`` ...
        group: process group, if known.
        ranks: processes in it; ``None`` if not known.
        dtype: element type, if known.
        size_bytes: bytes of one; ``None`` if not known.
        count: how many.
        total_ns: sum of their durations.
        mean_ns: mean duration; it includes the wait for late ranks.
        min_ns: shortest: nearest to what the transfer takes by itself.
        algorithm_gbps: ``size / mean duration`` in 10^9 bytes a second.
        bus_gbps: ``algorithm_gbps`` times NCCL's factor; comparable with the links' speed.
        best_bus_gbps: the same of the shortest.
    """

    collective: str
    group: str
    ranks: int | None
    dtype: str
    size_bytes: int | None
    count: int
    total_ns: int
    mean_ns: float
    min_ns: int
    algorithm_gbps: float | None
    bus_gbps: float | None
    best_bus_gbps: float | None


@dataclass(frozen=True, slots=True)
class CommAnswer(Answer):
    """Communication of one rank.

    Attributes:
        where: ``device`` or ``host``: where the collectives were seen.
        count: collectives.
        total_ns: length of the union of all collectives.
        exposed_ns: that of it during which no other kernel ran (no framework op, on the host).
        hidden_share: share of ``total_ns`` that other work hid.
        groups: by kind, size, type and process group, the longest total first.
    """

    where: str
    count: int
    total_ns: int
    exposed_ns: int
    hidden_share: float
    groups: tuple[CollectiveGroup, ...]


def communication(data: ProfileData) -> CommAnswer | None:
    """Tell how a rank communicated; ``None`` if it did not."""
    found = collectives(data)
    if found is None:
        return None
    comm = union(found.start_ns, found.start_ns + found.duration_ns)
    if found.where == "device":
        hidden_by = data.busy("kernel")
    else:
        starts = data.ops.ints("start_ns")
        hidden_by = union(starts, starts + durations(data.ops)) - comm
    exposed = (comm | hidden_by).total - hidden_by.total
    return CommAnswer(
        found.where,
        len(found.start_ns),
        comm.total,
        exposed,
        1 - exposed / comm.total if comm.total else 0.0,
        _grouped(found),
    )


def _grouped(found: Collectives) -> tuple[CollectiveGroup, ...]:
    lengths: dict[tuple[str, str, str, int, int], list[int]] = {}
    keys = zip(found.name, found.group, found.dtype, found.ranks.tolist(),
               found.size_bytes.tolist(), strict=True)  # fmt: skip
    for key, length in zip(keys, found.duration_ns.tolist(), strict=True):
        lengths.setdefault(key, []).append(length)
    groups = [_group(*key, times) for key, times in lengths.items()]
    return tuple(sorted(groups, key=lambda group: -group.total_ns))


def _group(
    name: str, group: str, dtype: str, ranks: int, size: int, times: list[int]
) -> CollectiveGroup:
    mean = sum(times) / len(times)
    factor = bus_factor(name, ranks) if ranks > 0 else None
    algorithm = size / mean if size > 0 and mean else None
    best = size / min(times) if size > 0 and min(times) > 0 else None
    return CollectiveGroup(
        name,
        group,
        ranks if ranks > 0 else None,
        dtype,
        size if size >= 0 else None,
        len(times),
        sum(times),
        mean,
        min(times),
        algorithm,
        algorithm * factor if algorithm and factor else None,
        best * factor if best and factor else None,
    )
