"""Which call of the device runtime launched which device work, and which calls wait for it."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from tracelens.analysis.profile.columns import Columns, rows_of
from tracelens.analysis.profile.data import ProfileData
from tracelens.analysis.profile.intervals import Ints

_SYNC = re.compile(
    r"^(cuda|hip|cu)(Device|Stream|Event|Ctx)?Synchronize"
    r"|^(cuda|hip|cu)(Memcpy|Memset|MemcpyDtoH|MemcpyHtoD)(_v\d+)?$"
    r"|^(cuda|hip)MemcpyWithStream$",
    re.IGNORECASE,
)
"""Calls that return only when the device has done something: waits, and synchronous copies."""


def launch_rows(data: ProfileData, kernels: Columns) -> Ints:
    """Return the row in ``data.spans`` of the call that launched each kernel, -1 if unknown.

    The link is the kernel's ``span_id``, and its ``corr_id`` where that is not known.
    """
    spans = data.spans
    rows = rows_of(spans.ints("span_id"), kernels.ints("span_id"))
    missing = rows < 0
    if missing.any():
        corr = np.where(spans.is_one_of("kind", ["runtime", "sync"]), spans.ints("corr_id"), -1)
        calls = np.flatnonzero(corr >= 0)
        # Of calls that share an id the first is taken.
        ids, first = np.unique(corr[calls], return_index=True)
        at = rows_of(ids, kernels.ints("corr_id")[missing])
        rows[missing] = np.where(at >= 0, np.append(calls[first], -1)[at], -1)
    return rows


def is_sync(data: ProfileData) -> NDArray[np.bool_]:
    """Return which spans are waits of the host for a device; bool of shape (spans,)."""
    named = data.spans.where("name", [bool(_SYNC.search(t)) for t in data.spans.texts("name")])
    return (named & data.spans.is_one_of("kind", ["runtime"])) | data.spans.is_one_of(
        "kind", ["sync"]
    )


def stream_order(kernels: Columns) -> tuple[Ints, NDArray[np.bool_]]:
    """Return device work in the order of each stream.

    Returns:
        Rows sorted by device, stream and start, shape (n,); and whether each follows, in that
        order, another of its stream, bool of shape (n,).
    """
    start = kernels.ints("start_ns")
    key = kernels.ints("device") * (1 << 32) + kernels.ints("stream")
    order = np.argsort(start, kind="stable")
    order = order[np.argsort(key[order], kind="stable")]
    follows = np.append(False, key[order][1:] == key[order][:-1]) if len(order) else order > 0
    return order, follows
