"""What is put right before events are linked: begins and ends paired, impossible times left out."""

from __future__ import annotations

import numpy as np

from tracelens.convert.kineto_events import Collected
from tracelens.convert.kineto_kinds import Kind, kind_of

DAY_NS = 86_400_000_000_000
"""Events further than this from the middle of all are not of the same profile."""

_MINUTE_NS = 60_000_000_000


def pair_ends(found: Collected) -> None:
    """Turn events that begin and end into ranges.

    An end closes the last open range of its name on its thread, or the last open one if it has no
    name; ranges opened after that one end with it. A range that is never closed ends with the last
    event of its thread.
    """
    table = found.ends
    if not table.rows:
        return
    thread, t_ns, begins = (table.take(name) for name in ("thread", "t_ns", "begins"))
    name, category, args = (table.take(name) for name in ("name", "category", "args"))
    # At one time an end comes first, unless it ends what began just then.
    order = np.lexsort((np.arange(table.rows), t_ns, thread)).tolist()
    empty = found.names.code("")
    open_: list[int] = []
    ranges: list[tuple[int, int]] = []
    unopened = crossed = unclosed = 0
    for place, row in enumerate(order):
        if place and thread[row] != thread[order[place - 1]]:
            unclosed += _close(open_, ranges, int(t_ns[order[place - 1]]))
        if begins[row]:
            open_.append(row)
            continue
        at = len(open_) - 1
        if name[row] != empty:
            while at >= 0 and name[open_[at]] != name[row]:
                at -= 1
        if at < 0:
            unopened += 1
            continue
        crossed += at != len(open_) - 1
        for inner in open_[at:]:
            ranges.append((inner, int(t_ns[row])))
        del open_[at:]
    unclosed += _close(open_, ranges, int(t_ns[order[-1]]))
    problems = found.problems
    problems.add("ends of ranges that never began are left out", unopened)
    problems.add("ranges that never end are ended with their thread", unclosed)
    problems.add("ranges end in another order than they began", crossed)
    if not ranges:
        return
    rows = np.array([row for row, _ in ranges], dtype=np.int64)
    ends = np.array([end for _, end in ranges], dtype=np.int64)
    kinds = [kind_of(text, b"") for text in found.categories.values]
    kind = np.array([int(each) for each in kinds], dtype=np.uint8)[category[rows]]
    columns = {
        "name": name[rows],
        "thread": thread[rows],
        "start_ns": t_ns[rows],
        "duration_ns": ends - t_ns[rows],
    }
    for its_kind, to in ((Kind.PYTHON, found.python), (Kind.ANNOTATION, found.annotations)):
        chosen = kind == its_kind
        if chosen.any():
            to.add(int(chosen.sum()), **{key: value[chosen] for key, value in columns.items()})
    other = (kind != Kind.PYTHON) & (kind != Kind.ANNOTATION)
    found.others.add(
        int(other.sum()),
        kind=int(Kind.OTHER),
        args=args[rows][other],
        **{key: value[other] for key, value in columns.items()},
    )


def _close(open_: list[int], ranges: list[tuple[int, int]], end_ns: int) -> int:
    count = len(open_)
    ranges.extend((row, end_ns) for row in open_)
    open_.clear()
    return count


def leave_out_impossible(found: Collected) -> None:
    """Leave out events whose time cannot be: a day from the others, or 0 where all are later."""
    tables = [found.python, found.annotations, found.ops, found.runtime, found.others, found.device]
    starts = [table.take("start_ns") for table in tables if table.rows]
    if not starts:
        return
    middle = int(np.median(np.concatenate(starts)))
    starts.clear()
    lost = endless = 0
    for table in tables:
        if not table.rows:
            continue
        start, length = table.take("start_ns"), table.take("duration_ns")
        far = _far(start, middle)
        bad = (length < 0) | (length > DAY_NS)
        if far.any() or bad.any():
            lost += int(far.sum())
            endless += int((bad & ~far).sum())
            table.keep(~(far | bad))
    for table in (found.memory, found.counters, found.arrows):
        if table.rows:
            far = _far(table.take("t_ns"), middle)
            if far.any():
                lost += 0 if table is found.arrows else int(far.sum())
                table.keep(~far)
    problems = found.problems
    problems.add("events at an impossible time (0, or a day from the others) are left out", lost)
    problems.add("events of an impossible duration (below 0, or above a day) are left out", endless)


def _far(times: np.ndarray, middle: int) -> np.ndarray:
    far = (times < middle - DAY_NS) | (times > middle + DAY_NS)
    if middle > _MINUTE_NS:
        far |= times <= 0
    return np.asarray(far)
