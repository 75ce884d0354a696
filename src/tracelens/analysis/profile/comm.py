"""Collectives of one rank: how long, how fast, how much of it was not hidden by computing."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tracelens.analysis.profile.answer import Answer
from tracelens.analysis.profile.data import ProfileData, durations
from tracelens.analysis.profile.intervals import Ints, union

_KERNEL_NAME = re.compile(
    r"(?:nccl|rccl)(?:Dev)?Kernel_?(?P<name>AllReduce|AllGather|ReduceScatter|Broadcast|Reduce"
    r"|SendRecv|AllToAll|Generic)",
    re.IGNORECASE,
)
_KNOWN = re.compile(
    r"allreduce|allgather|reducescatter|alltoall|broadcast|reduce|sendrecv|send|recv|gather|scatter"
    r"|barrier"
)

_UNIT = 1.0
"""Factor of a collective of which nothing is known, and of those that move their data once."""


def canonical(name: str) -> str:
    """Return a collective's name without spelling: ``_allgather_base`` is ``allgather``.

    Examples:
        >>> canonical("ncclDevKernel_AllReduce_Sum_f32_RING_LL"), canonical("_allgather_base")
        ('allreduce', 'allgather')
    """
    found = _KERNEL_NAME.search(name)
    text = (found["name"] if found else name).lower().replace("_", "")
    known = _KNOWN.search(text)
    return known[0] if known else text


def bus_factor(collective: str, ranks: int) -> float:
    """Return bus over algorithm bandwidth of a collective among ``ranks`` processes.

    As in NCCL's tests (nccl-tests, doc/PERFORMANCE.md): all-reduce ``2 (n - 1) / n``; all-gather,
    reduce-scatter, all-to-all ``(n - 1) / n``; broadcast, reduce and point to point 1. The size
    that the bandwidth refers to is the larger of what a process gives and gets.
    """
    if ranks < 2:
        return _UNIT
    share = (ranks - 1) / ranks
    return {
        "allreduce": 2 * share,
        "allgather": share,
        "reducescatter": share,
        "alltoall": share,
        "gather": share,
        "scatter": share,
    }.get(collective, _UNIT)


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


@dataclass(frozen=True)
class Collectives:
    """The collectives of a rank, whichever table told of them; arrays of shape (n,).

    Attributes:
        where: ``device`` or ``host``.
        start_ns: when this rank began.
        duration_ns: until it was done.
        step: training step.
        name: canonical names.
        group: process groups; empty if unknown.
        dtype: element types; empty if unknown.
        ranks: processes in the group; -1 if unknown.
        size_bytes: -1 if unknown.
    """

    where: str
    start_ns: Ints
    duration_ns: Ints
    step: Ints
    name: list[str]
    group: list[str]
    dtype: list[str]
    ranks: Ints
    size_bytes: Ints


def collectives(data: ProfileData) -> Collectives | None:
    """Return a rank's collectives in order of time; ``None`` if there is none.

    They are device kernels where there are any, else what the recording wrote to ``collectives``
    (gloo on the CPU), else host ranges named ``gloo:…`` or ``nccl:…``.
    """
    kernels = data.kernels
    rows = np.flatnonzero(data.device_class(kernels) == 1)
    if len(rows):
        return _of_kernels(data, rows[np.argsort(kernels.ints("start_ns")[rows], kind="stable")])
    return _of_table(data) or _of_spans(data)


def _of_kernels(data: ProfileData, rows: Ints) -> Collectives:
    kernels = data.kernels
    names = [canonical(text) for text in kernels.texts("name")]
    told = [canonical(text) for text in kernels.texts("collective")]
    name = [
        told[c] if c >= 0 else names[n]
        for c, n in zip(kernels.codes("collective")[rows], kernels.codes("name")[rows], strict=True)
    ]
    return Collectives(
        "device",
        kernels.ints("start_ns")[rows],
        durations(kernels)[rows],
        kernels.ints("step")[rows],
        name,
        _texts(kernels.codes("comm_group")[rows], kernels.texts("comm_group")),
        _texts(kernels.codes("comm_dtype")[rows], kernels.texts("comm_dtype")),
        kernels.ints("comm_ranks")[rows],
        kernels.ints("size_bytes")[rows],
    )


def _of_table(data: ProfileData) -> Collectives | None:
    columns = data.table("collectives")
    if not len(columns):
        return None
    order = np.argsort(columns.ints("start_ns"), kind="stable")
    return Collectives(
        "host",
        columns.ints("start_ns")[order],
        durations(columns)[order],
        columns.ints("step")[order],
        [canonical(t) for t in _texts(columns.codes("name")[order], columns.texts("name"))],
        _texts(columns.codes("comm_group")[order], columns.texts("comm_group")),
        _texts(columns.codes("dtype")[order], columns.texts("dtype")),
        columns.ints("comm_ranks")[order],
        columns.ints("size_bytes")[order],
    )


def _of_spans(data: ProfileData) -> Collectives | None:
    spans = data.spans
    texts = spans.texts("name")
    host = re.compile(r"^(gloo|nccl|mpi|ucc):", re.IGNORECASE)
    mask = spans.where("name", [bool(host.match(text)) for text in texts])
    rows = np.flatnonzero(mask & ~spans.is_one_of("kind", ["device_annotation"]))
    if not len(rows):
        return None
    rows = rows[np.argsort(spans.ints("start_ns")[rows], kind="stable")]
    unknown, nothing = np.full(len(rows), -1, dtype=np.int64), [""] * len(rows)
    return Collectives(
        "host",
        spans.ints("start_ns")[rows],
        durations(spans)[rows],
        spans.ints("step")[rows],
        [canonical(text.partition(":")[2]) for text in _texts(spans.codes("name")[rows], texts)],
        nothing,
        nothing,
        unknown,
        unknown,
    )


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


def _texts(codes: Ints, texts: list[str]) -> list[str]:
    named = [*texts, ""]
    return [named[code] for code in codes.tolist()]
