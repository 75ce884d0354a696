"""Ranges of a host and work of devices as the tables ``ops``, ``spans``, ``kernels``, ``memory``.

One definition for every source: what fills in ``HostRanges`` and ``DeviceWork`` gets nesting,
links, steps, phases, lines and modules from here.

- An op's parent is the innermost op around it on its thread.
- A backward op differentiates the last forward op that began before it with its sequence number;
  ops inside it belong to that one too. Lines and modules are the forward op's.
- An op's line is that of the innermost user's Python frame around it, else of its call stack, else
  of the op around it. Its module is the innermost module's call around it.
- A phase is that of the innermost mark around: an engine's function or an op with a forward thread
  is ``backward``, ``Optimizer.step#…`` is ``optimizer``, ``enumerate(DataLoader)…`` is ``data``;
  without any it is ``forward``, or on a thread of the autograd engine ``backward``.
- Device work belongs to the innermost op around the call with its correlation id, else to the op
  with its external id, and to the step in which that was called, else in which it ran.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.convert.profile_names import module_name
from tracelens.convert.profile_nesting import (
    Ints,
    Places,
    nearest,
    nesting_order,
    parents,
    running_at,
    thread_times,
)
from tracelens.convert.profile_ranges import (
    ANNOTATION,
    OP,
    PYTHON,
    RUNTIME,
    Codes,
    HostRanges,
    OpFacts,
    Steps,
    Texts,
)

PHASES = ("other", "data", "forward", "backward", "optimizer")
_DATA, _FORWARD, _BACKWARD, _OPTIMIZER = 1, 2, 3, 4


class Nested:
    """Ranges in order of thread and time, with what lies around each.

    Everything is given by *place*: the position in that order.

    Args:
        ranges: what ran; it is empty afterwards.
        ops: of the ranges of kind ``op``.
        texts: what their numbers mean.
        slack_ns: how far an inner range may reach beyond the outer one, as rounding does.
        arrows: rows of backward ops and of their forward ops, where the source tells them.

    Attributes:
        kind: at each place, as are ``name``, ``thread``, ``start_ns``, ``end_ns``, ``fact``.
        parent: place of the innermost range around.
        op_around: place of the innermost op around.
        op_places: places of ops by start, the outer first: an op's id is its position here.
        op_id: the id of the op at each place, -1 for others.
        steps: the training steps.
    """

    def __init__(
        self,
        ranges: HostRanges,
        ops: OpFacts,
        texts: Texts,
        *,
        slack_ns: int = 0,
        arrows: tuple[Ints, Ints] | None = None,
    ) -> None:
        self._ops, self._texts = ops, texts
        names = texts.names

        def rank(rows: Ints) -> Ints:
            # Ids are given in order of start: of two equal ranges the lower one is outside.
            found = ranges.kind[rows].astype(np.int64) << 40
            is_op = np.flatnonzero(ranges.kind[rows] == OP)
            external = ops.external[ranges.fact[rows[is_op]]]
            found[is_op] += external.clip(0, (1 << 40) - 1)
            return found

        order = nesting_order(ranges.thread, ranges.start_ns, ranges.end_ns, rank)
        order = order.astype(np.int32)
        self._row = order if arrows is not None else None
        self.corr = ranges.corr
        self.kind = ranges.kind[order]
        self.name = _taken(ranges, "name")[order]
        self.thread = _taken(ranges, "thread")[order]
        self.start_ns = _taken(ranges, "start_ns")[order]
        self.end_ns = _taken(ranges, "end_ns")[order]
        self.fact = _taken(ranges, "fact")[order]
        if len(order):
            # An annotation among the ops, as until 2021, is none.
            named = (names.step >= 0) | names.loader | names.optimizer
            self.kind[(self.kind == OP) & named[self.name]] = ANNOTATION
        del order
        self.parent: Places = parents(self.thread, self.start_ns, self.end_ns, slack_ns)
        self.is_op = self.kind == OP
        self.op_around: Places = nearest(self.parent, self.is_op)
        places = np.flatnonzero(self.is_op).astype(np.int32)
        self.op_places = places[np.argsort(self.start_ns[places], kind="stable")]
        self.op_id = np.full(len(self.kind), -1, dtype=np.int32)
        self.op_id[self.op_places] = np.arange(len(places), dtype=np.int32)
        self.steps, self.repeated_steps = self._find_steps()
        self._forward: Places | None = None
        self._arrows = arrows

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def ops(self) -> OpFacts:
        """What is known of ops."""
        return self._ops

    @property
    def texts(self) -> Texts:
        """What numbers mean."""
        return self._texts

    def _find_steps(self) -> tuple[Steps, int]:
        step = self._texts.names.step
        marks = self._places(ANNOTATION)
        marks = marks[step[self.name[marks]] >= 0] if len(step) else marks[:0]
        length = self.end_ns[marks] - self.start_ns[marks]
        # Of several marks of a step the longest is it.
        marks = marks[np.lexsort((-length, step[self.name[marks]]))]
        number, first = np.unique(step[self.name[marks]], return_index=True)
        repeated = len(marks) - len(number)
        marks = marks[first]
        order = np.argsort(self.start_ns[marks], kind="stable")
        marks, number = marks[order], number[order]
        return Steps(number, self.start_ns[marks], self.end_ns[marks]), repeated

    def _places(self, kind: int) -> Places:
        return np.flatnonzero(self.kind == kind).astype(np.int32)

    def forward(self) -> Places:
        """Return the place of the forward op that each op differentiates, -1 for none."""
        if self._forward is not None:
            return self._forward
        found = np.full(len(self), -1, dtype=np.int32)
        places = self.op_places
        fact = self.fact[places]
        sequence = self._ops.sequence[fact]
        backward = self._ops.forward_thread[fact] > 0
        known = sequence >= 0
        source, sink = places[known & ~backward], places[known & backward]
        if len(source) and len(sink):
            self._by_sequence(found, source, sink)
        elif self._arrows is not None and len(self._arrows[0]):
            at = np.empty(len(self), dtype=np.int32)
            at[self._row] = np.arange(len(self), dtype=np.int32)
            found[at[self._arrows[0]]] = at[self._arrows[1]]
        if (found >= 0).any():
            inside = nearest(self.parent, found >= 0)
            without = np.flatnonzero(self.is_op & (found < 0) & (inside >= 0))
            found[without] = found[inside[without]]
        self._forward = found
        return found

    def _by_sequence(self, found: Places, source: Places, sink: Places) -> None:
        sequence = self._ops.sequence
        numbers = np.concatenate([sequence[self.fact[source]], sequence[self.fact[sink]]])
        _, rank = np.unique(numbers, return_inverse=True)
        rank = rank.reshape(-1)
        times = np.concatenate([self.start_ns[source], self.start_ns[sink]])
        # A few ns less exact where that is needed to fit sequence and time into 63 bits.
        shift = 0
        span = int(times.max()) - int(times.min()) + 2
        while (int(rank.max()) + 1) * (span >> shift) >= 1 << 61:
            shift += 1
        times = times >> shift
        key = thread_times(rank, times, int(times.min()), int(times.max()))
        of_source, of_sink = key[: len(source)], key[len(source) :]
        order = np.argsort(of_source, kind="stable")
        at = np.searchsorted(of_source[order], of_sink) - 1
        chosen = order[at.clip(0)]
        same = (at >= 0) & (rank[: len(source)][chosen] == rank[len(source) :])
        found[sink[same]] = source[chosen[same]]

    def phases(self) -> NDArray[np.uint8]:
        """Return the phase at each place, position in ``PHASES``."""
        names = self._texts.names
        mark = np.zeros(len(self), dtype=np.uint8)
        if not len(self):
            return mark
        note = self.kind == ANNOTATION
        mark[note & names.loader[self.name]] = _DATA
        mark[note & names.optimizer[self.name]] = _OPTIMIZER
        backward = np.zeros(len(self), dtype=np.bool_)
        backward[self.op_places] = self._ops.forward_thread[self.fact[self.op_places]] > 0
        mark[(backward | names.backward[self.name]) & self.is_op] = _BACKWARD
        around = nearest(self.parent, mark > 0)
        mark = np.where(mark > 0, mark, np.where(around >= 0, mark[around], 0)).astype(np.uint8)
        mark[self._on_engine_thread(mark)] = _BACKWARD
        return np.where(mark > 0, mark, _FORWARD)

    def _on_engine_thread(self, mark: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return what has no mark and runs on a thread of the autograd engine.

        Such a thread runs backward ops, and nothing that only the program's own thread does: data,
        optimizers, steps, forward ops that are differentiated. Engines before 2022 have no marks
        of their own, and gradients are added up there; DDP copies them to its buckets.
        """
        forward = self.forward()
        source = np.zeros(len(self), dtype=np.bool_)
        source[forward[forward >= 0]] = True
        steps = (self.kind == ANNOTATION) & (self._texts.names.step[self.name] >= 0)
        others = ((mark == 0) & source) | (mark == _DATA) | (mark == _OPTIMIZER) | steps
        threads = np.setdiff1d(self.thread[mark == _BACKWARD], self.thread[others])
        engine: NDArray[np.bool_] = (mark == 0) & np.isin(self.thread, threads)
        return engine

    def frames(self) -> Codes:
        """Return the number of the user's frame at each place, -1 for none."""
        texts = self._texts
        if not texts.users.any():
            return _nothing(len(self))
        found = np.full(len(self), -1, dtype=np.int32)
        known = np.append(texts.users, False)
        python = self.kind == PYTHON
        own = np.where(python, texts.frame_of_name[self.name], -1)
        users = python & known[own]
        around = nearest(self.parent, users)
        found[:] = np.where(around >= 0, own[around], -1)
        found[users] = own[users]
        del own, around
        places = self.op_places
        stack = self._ops.frame[self.fact[places]]
        empty = (found[places] < 0) & (stack >= 0)
        found[places[empty]] = stack[empty]
        has = self.is_op & (found >= 0)
        outer = nearest(self.parent, has)
        empty_places = np.flatnonzero((found < 0) & (outer >= 0))
        found[empty_places] = found[outer[empty_places]]
        return self._as_forward(found)

    def modules(self) -> Codes:
        """Return the number of the module path at each place, -1 for none."""
        names, paths = self._texts.names, self._texts.modules
        if not names.module.any() and not paths:
            return _nothing(len(self))
        found = np.full(len(self), -1, dtype=np.int32)
        calls = (self.kind == PYTHON) & names.module[self.name]
        around = nearest(self.parent, calls)
        codes = {path: code for code, path in enumerate(paths)}
        of_pair: dict[tuple[int, int], int] = {}
        places = np.flatnonzero(calls)
        for place, outer, name in zip(
            places.tolist(), around[places].tolist(), self.name[places].tolist(), strict=True
        ):
            inside = int(found[outer]) if outer >= 0 else -1
            code = of_pair.get((inside, name))
            if code is None:
                own = module_name(names.texts[name])
                path = f"{paths[inside]}.{own}" if inside >= 0 else own
                code = codes.setdefault(path, len(paths))
                if code == len(paths):
                    paths.append(path)
                of_pair[inside, name] = code
            found[place] = code
        inner = np.flatnonzero(~calls & (around >= 0))
        found[inner] = found[around[inner]]
        own_paths = self._ops.module[self.fact[self.op_places]]
        empty = (found[self.op_places] < 0) & (own_paths >= 0)
        found[self.op_places[empty]] = own_paths[empty]
        return self._as_forward(found)

    def _as_forward(self, found: Codes) -> Codes:
        """Give a backward op what its forward op has."""
        forward = self.forward()
        rows = np.flatnonzero(forward >= 0)
        theirs = found[forward[rows]]
        rows = rows[theirs >= 0]
        found[rows] = found[forward[rows]]
        return found

    def at(self, thread: Codes, t_ns: Ints) -> Places:
        """Return the place of the innermost range that runs on a thread at a time, or -1."""
        return running_at(thread, t_ns, self.thread, self.start_ns, self.end_ns, self.parent)

    def op_of(self, places: Places) -> Places:
        """Return the place of the op that is, or lies around, each place; -1 stays."""
        if not len(self):
            return places
        around = np.where(self.is_op[places], places, self.op_around[places])
        return np.where(places >= 0, around, -1)

    def launches(self, corr: Ints) -> Places:
        """Return the place of the call with each correlation id, -1 for none or 0."""
        calls = np.flatnonzero(self.kind == RUNTIME)
        own = self.corr[self.fact[calls]]
        known = own != 0
        return _lookup(own[known], calls[known], corr)

    def externals(self, external: Ints) -> Places:
        """Return the place of the op with each external id, -1 for none or 0."""
        own = self._ops.external[self.fact[self.op_places]]
        has = own > 0
        return _lookup(own[has], self.op_places[has], external)


def _nothing(rows: int) -> Codes:
    """Return -1 for all rows, in the memory of one."""
    return np.broadcast_to(np.array(-1, dtype=np.int32), rows)


def _taken(ranges: HostRanges, name: str) -> NDArray[Any]:
    """Return a column and forget it there: millions of rows need not be held twice."""
    column: NDArray[Any] = getattr(ranges, name)
    setattr(ranges, name, column[:0].copy())
    return column


def _lookup(keys: Ints, places: NDArray[Any], wanted: Ints) -> Places:
    """Return the first place whose key is wanted, -1 for none or for 0."""
    found = np.full(len(wanted), -1, dtype=np.int32)
    if not len(keys) or not len(wanted):
        return found
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    at = np.searchsorted(ordered, wanted).clip(0, len(ordered) - 1)
    same = (ordered[at] == wanted) & (wanted != 0)
    found[same] = places[order[at[same]]]
    return found
