"""The collectives of a rank, whichever table of the trace tells of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tracelens.analysis.profile.columns import durations
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import Ints

_KERNEL_NAME = re.compile(
    r"(?:nccl|rccl)(?:Dev)?Kernel_?(?P<name>AllReduce|AllGather|ReduceScatter|Broadcast|Reduce"
    r"|SendRecv|AllToAll|Generic)",
    re.IGNORECASE,
)
_KNOWN = re.compile(
    r"allreduce|allgather|reducescatter|alltoall|broadcast|reduce|sendrecv|send|recv|gather|scatter"
    r"|barrier"
)


def canonical(name: str) -> str:
    """Return a collective's name without spelling: ``_allgather_base`` is ``allgather``.

    Examples:
        >>> canonical("ncclDevKernel_AllReduce_Sum_f32_RING_LL"), canonical("_allgather_base")
        ('allreduce', 'allgather')
    """
    found = _KERNEL_NAME.search(name)
    text = (found["name"] if found else name).lower().replace("_", "").replace("-", "")
    known = _KNOWN.search(text)
    return known[0] if known else text


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


def _texts(codes: Ints, texts: list[str]) -> list[str]:
    named = [*texts, ""]
    return [named[code] for code in codes.tolist()]
