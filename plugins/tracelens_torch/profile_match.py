"""Which recorded op a profiled one is: the observer and Kineto see the same call twice.

Both note the thread of the system, the op's name and times of the same clock, microseconds apart.
On each thread the ops of one name come in the same order, so the one whose time is nearest is the
same op; a pair has to be nearest from both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.events import RecordKind

Ints = NDArray[np.int64]

MAX_APART_NS = 20_000_000
"""Times further apart are of different ops: naming a new site can take milliseconds."""


@dataclass(slots=True)
class Recorded:
    """Ops in the ring, in order of position; every array has shape (records,).

    Attributes:
        op_id: of the op.
        site: number of its site.
        tid: thread id of the system.
        name: number into ``names``.
        middle_ns: a time at which it ran, since the trace's epoch; at guard level its end.
        at_end: whether ``middle_ns`` is its end.
        names: distinct names of ops.
    """

    op_id: Ints
    site: Ints
    tid: Ints
    name: Ints
    middle_ns: Ints
    at_end: bool
    names: list[str]


def recorded(writer: Any, since_ns: int) -> Recorded:
    """Return the ops that the ring holds from a time on.

    Args:
        writer: the recording's ``ShardWriter``.
        since_ns: since the trace's epoch.
    """
    records = writer.committed()
    records = records[(records["kind"] == RecordKind.OP) & (records["start_ns"] >= since_ns)]
    duration = records["duration_ns"].astype(np.int64)
    known = duration >= 0
    sites, place = np.unique(records["site_id"].astype(np.int64), return_inverse=True)
    names: dict[str, int] = {}
    of_site = [
        names.setdefault(str((writer.strings(site) or {}).get("op", "")), len(names))
        for site in sites.tolist()
    ]
    return Recorded(
        records["op_id"].astype(np.int64),
        records["site_id"].astype(np.int64),
        records["tid"].astype(np.int64),
        np.array(of_site, dtype=np.int64)[place] if len(sites) else np.empty(0, np.int64),
        records["start_ns"].astype(np.int64) + np.where(known, duration // 2, 0),
        not bool(known.any()),
        list(names),
    )


def match(
    ours: Recorded, tid: Ints, name: Ints, names: list[str], start_ns: Ints, end_ns: Ints
) -> Ints:
    """Return, for each profiled op, the row of the recorded one that it is, or -1.

    Args:
        ours: the recorded ops.
        tid: shape (ops,).
        name: number into ``names``, shape (ops,).
        names: distinct names.
        start_ns: since the trace's epoch, shape (ops,).
        end_ns: since the trace's epoch, shape (ops,).
    """
    found = np.full(len(tid), -1, dtype=np.int64)
    if not len(ours.op_id) or not len(tid):
        return found
    number = {text: code for code, text in enumerate(ours.names)}
    theirs_name = np.array([number.get(text, -1) for text in names], dtype=np.int64)[name]
    theirs_time = end_ns if ours.at_end else (start_ns + end_ns) // 2
    groups, place = np.unique(
        np.stack([np.r_[ours.tid, tid], np.r_[ours.name, theirs_name]], axis=1),
        axis=0,
        return_inverse=True,
    )
    place = place.reshape(-1)
    # One ascending key over (group, time): groups are further apart than any two times.
    base = min(int(ours.middle_ns.min()), int(theirs_time.min()))
    span = max(int(ours.middle_ns.max()), int(theirs_time.max())) - base + 1
    span += 2 * MAX_APART_NS
    if len(groups) * span >= 1 << 62:
        span = (1 << 62) // len(groups)
    our_key = place[: len(ours.op_id)] * span + (ours.middle_ns - base)
    their_key = place[len(ours.op_id) :] * span + (theirs_time - base)
    nearest_theirs = _nearest(our_key, their_key)
    nearest_ours = _nearest(their_key, our_key)
    mine = np.arange(len(our_key))
    both = nearest_ours[nearest_theirs] == mine
    both &= np.abs(their_key[nearest_theirs] - our_key) <= MAX_APART_NS
    both &= theirs_name[nearest_theirs] >= 0
    found[nearest_theirs[both]] = mine[both]
    return found


def _nearest(keys: Ints, among: Ints) -> Ints:
    """Return, for each key, the row of the nearest of ``among``."""
    order = np.argsort(among, kind="stable")
    ordered = among[order]
    right = np.searchsorted(ordered, keys).clip(0, len(ordered) - 1)
    left = (right - 1).clip(0)
    nearer = np.where(np.abs(keys - ordered[left]) <= np.abs(ordered[right] - keys), left, right)
    return order[nearer]
