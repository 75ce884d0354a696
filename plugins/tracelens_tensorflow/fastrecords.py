"""Writes the records of eager ops whose outputs are fine, for a third of the general price.

Most ops make nothing bad and are looked at once: their record is written straight into the ring.
Everything else (a hit and its details, ops that hand on a value) goes to the `Recorder`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens import stats
from tracelens.events import NO_ID, SLOT_BITS, OpFlag, RecordKind
from tracelens.oprecords import thread_id, value_of
from tracelens.storage.format import HEADER_HEAD_OFFSET, HEADER_SEALED_OFFSET
from tracelens_tensorflow import tensors
from tracelens_tensorflow.tensors import FLOATS, array_of

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens.storage.writer import ShardWriter
    from tracelens_tensorflow.recording import Recorder

_NO_NUMBERS = (0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, -1)
_MAX_LAYOUTS = 1 << 16
_KNOWN_TO_NUMPY = FLOATS - tensors._NARROW
_INPLACE, _CHECKED = int(OpFlag.INPLACE), int(OpFlag.CHECKED)  # enums add a microsecond each
_HARMLESS = int(OpFlag.HARMLESS)
_VIEW = int(OpFlag.VIEW | OpFlag.HARMLESS)
_OP, _STAT, _INPUTS = int(RecordKind.OP), int(RecordKind.STAT), int(RecordKind.INPUTS)


class FastRecords:
    """Writes ops that ran eagerly.

    Args:
        session: the recording.
        recorder: knows which value a tensor holds; writes what is not simple.

    Attributes:
        full: measure every output and write layouts.
        ops: ops written.
        hits: those with a bad output.
    """

    def __init__(self, session: Session, recorder: Recorder) -> None:
        self._session = session
        self._recorder = recorder
        self._writer = session.writer
        self._layouts: dict[Any, int] = {}
        self._reader = tensors.TensorFlowTensors()
        self._emitter = _emitter(self._writer)
        self.full = session.config.capture != "guard"
        self.ops = 0
        self.hits = 0

    def now_ns(self) -> int:
        """Return the time since the trace's epoch."""
        return time.monotonic_ns() - self._writer.epoch_monotonic_ns

    def op(
        self, kind: str, site: int, phase: int, inputs: Sequence[Any], outputs: Sequence[Any], *,
        flags: int = 0, fwd_op_id: int = NO_ID, start_ns: int = 0, duration_ns: int = -1,
        written: Any = None,
    ) -> tuple[int, bool]:  # fmt: skip
        """Write an op.

        Args:
            kind: its type.
            site: interned site.
            phase: ``Phase`` code.
            inputs: its eager inputs.
            outputs: its eager outputs; of an op that writes a variable, its handle.
            flags: further ``OpFlag`` bits.
            fwd_op_id: of a backward op, its forward op.
            start_ns: since the trace's epoch.
            duration_ns: -1 if it was not measured.
            written: of an op that writes a variable, what the variable holds now.

        Returns:
            The op's id, and whether an output is bad.
        """
        self.ops += 1
        seen = outputs if written is None else (written,)
        emitter = self._emitter
        if emitter is not None and len(outputs) < 2:
            op_id = self._emit(
                emitter, site, phase, inputs, outputs, seen, flags, fwd_op_id, start_ns,
                duration_ns, written is not None,
            )  # fmt: skip
            if op_id >= 0:
                return op_id, False
        found = [_looked_at(tensor, self.full) for tensor in seen]
        if any(one is not None and one[0] for one in found):
            self.hits += 1
            op_id = self._recorder.op(
                kind, site, phase, inputs, outputs if written is None else outputs[1:],
                flags=flags, fwd_op_id=fwd_op_id, bad=True, start_ns=start_ns,
                duration_ns=duration_ns,
            )  # fmt: skip
            return op_id, True
        recorder, writer = self._recorder, self._writer
        ids = [recorder.value_id(tensor) for tensor in inputs]
        op_id = writer.reserve_op_id()
        for slot, tensor in enumerate(outputs):
            recorder.adopt(tensor, value_of(op_id, slot))
        if written is not None:
            flags |= _INPLACE
        first = found[0][1] if found and found[0] is not None else None
        n_in, tid, step = len(ids), thread_id(), self._session.current_step
        four = (*ids, NO_ID, NO_ID, NO_ID, NO_ID)[:4]
        writer.write(
            writer.reserve(), _OP, phase, flags | _CHECKED | recorder.flags, tid, site,
            self._layout(site, inputs, seen) if self.full else 0, op_id, step, NO_ID, fwd_op_id,
            start_ns, duration_ns, *four, min(n_in, 255), min(len(outputs), 255),
            2 if first is not None else 0, 0, *(first or _NO_NUMBERS),
            value_of(op_id, 0) if outputs else NO_ID,
        )  # fmt: skip
        for at in range(4, n_in, 4):
            rest = (*ids[at : at + 4], NO_ID, NO_ID, NO_ID)[:4]
            writer.write(
                writer.reserve(), _INPUTS, 0, 0, tid, 0, 0, op_id, step, NO_ID, NO_ID,
                start_ns, -1, *rest, min(at, 255), 0, 0, 0, *_NO_NUMBERS, NO_ID,
            )  # fmt: skip
        for slot in range(1, len(found)):
            one = found[slot]
            if one is not None and one[1] is not None:
                writer.write(
                    writer.reserve(), _STAT, phase, 0, tid, site,
                    self._interned("tensor", self._reader.layout_of(seen[slot])), op_id, step,
                    NO_ID, NO_ID, start_ns, -1, NO_ID, NO_ID, NO_ID, NO_ID, 0,
                    min(slot, 255), 2, 0, *one[1], value_of(op_id, slot),
                )  # fmt: skip
        return op_id, False

    def _emit(
        self, emitter: Any, site: int, phase: int, inputs: Sequence[Any], outputs: Sequence[Any],
        seen: Sequence[Any], flags: int, fwd_op_id: int, start_ns: int, duration_ns: int,
        writes: bool,
    ) -> int:  # fmt: skip
        """Look at the one output and write the record in C; a negative number if it is bad."""
        recorder, full = self._recorder, self.full
        value_id = recorder.value_id
        # What cannot make a bad value has one only if an input had: guard level does not look.
        looks = full or writes or not flags & _HARMLESS
        array = _plain_array(seen[0]) if seen and looks else None
        if writes:
            flags |= _INPLACE
        if looks:
            flags |= _CHECKED
        op_id: int = emitter.measured(
            array, full, [value_id(tensor) for tensor in inputs], site,
            self._session.current_step, phase, flags | recorder.flags, fwd_op_id,
            self._layout(site, inputs, seen) if full else 0, start_ns, duration_ns, len(outputs),
        )  # fmt: skip
        if op_id >= 0 and outputs:
            recorder.adopt(outputs[0], op_id << SLOT_BITS)
        return op_id

    def close(self) -> None:
        """Write nothing any more."""
        if self._emitter is not None:
            if self._emitter.dropped:
                self._writer.count_dropped(self._emitter.dropped)
            self._emitter.close()
            self._emitter = None

    def view(
        self, kind: str, site: int, phase: int, inputs: Sequence[Any], outputs: Sequence[Any], *,
        start_ns: int = 0, duration_ns: int = -1,
    ) -> int:  # fmt: skip
        """Let an op's outputs hold the value of its first input; write it if all is recorded."""
        self._recorder.pass_on(inputs, outputs, inputs[0] if inputs else None)
        if not self.full:
            return NO_ID
        value_id = self._recorder.value_id(inputs[0]) if inputs else NO_ID
        layout = self._layout(site, inputs[:1], outputs[:1])
        if self._emitter is not None:
            op_id: int = self._emitter.measured(
                None, True, [value_id], site, self._session.current_step, phase, _VIEW, NO_ID,
                layout, start_ns, duration_ns, 1,
            )  # fmt: skip
            return op_id
        writer = self._writer
        op_id = writer.reserve_op_id()
        writer.write(
            writer.reserve(), _OP, phase, _VIEW, thread_id(), site, layout, op_id,
            self._session.current_step, NO_ID, NO_ID, start_ns, duration_ns, value_id, NO_ID,
            NO_ID, NO_ID, 1, 1, 0, 0, *_NO_NUMBERS, value_id,
        )  # fmt: skip
        return op_id

    def _layout(self, site: int, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        # The variable behind a handle has the shape of what was read from it or written to it.
        key = (
            site, *[tensor._shape_tuple() for tensor in inputs],
            *[(tensor._shape_tuple(), tensor._datatype_enum()) for tensor in outputs],
        )  # fmt: skip
        number = self._layouts.get(key)
        if number is None:
            layout_of = self._reader.layout_of
            value = {"in": [*map(layout_of, inputs)], "out": [*map(layout_of, outputs)]}
            number = self._remember(key, int(self._writer.intern("layout", value)))
        return number

    def _interned(self, kind: str, value: Any) -> int:
        key = (kind, repr(value))
        number = self._layouts.get(key)
        return number or self._remember(key, int(self._writer.intern(kind, value)))

    def _remember(self, key: Any, number: int) -> int:
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        self._layouts[key] = number
        return number


def _emitter(writer: ShardWriter) -> Any:
    """Return what writes records in C, None where the extension does not have it."""
    if not hasattr(getattr(stats.native, "Emitter", None), "measured"):
        return None
    header = writer.header_address
    emitter = stats.native.Emitter(
        writer.record_address, writer.capacity, header + HEADER_HEAD_OFFSET,
        header + HEADER_SEALED_OFFSET, 0, writer.epoch_monotonic_ns, writer.mode == "stream",
        writer.on_full == "block", writer.op_id_address,
    )  # fmt: skip
    writer.use_native(emitter.reserve, emitter.reserve_op_id)
    return emitter


def _plain_array(tensor: Any) -> Any:
    """Return a floating eager tensor as an array, None if there is nothing to look at."""
    kind = tensor._datatype_enum()
    if kind not in FLOATS:
        return None
    array = tensor._numpy_internal() if kind in _KNOWN_TO_NUMPY else array_of(tensor)
    if type(array) is not np.ndarray:  # a scalar's memory is its own for a moment only
        return None if array is None else np.asarray(array)
    return array if array.size else None


def _looked_at(tensor: Any, full: bool) -> tuple[bool, Any] | None:
    """Return whether a tensor is bad, and its numbers as a record holds them if asked for."""
    if tensor._datatype_enum() not in FLOATS:
        return None
    array = array_of(tensor)
    if array is None:
        return None
    if not full:
        return stats.check(array) == 1, None
    if stats.native is not None:
        raw = stats.native.stats(array)
        if raw is None:
            return None
        numel, nan, posinf, neginf, zero, finite, vmin, vmax, mean, std, l2 = raw
        if finite < numel:
            return True, None
        return False, (vmin, vmax, mean, std, l2, numel, nan, posinf, neginf, zero)
    found = stats.measure(array)
    if found is None:
        return None
    if found.nonfinite:
        return True, None
    return False, (
        found.vmin or 0.0, found.vmax or 0.0, found.mean or 0.0, found.std or 0.0,
        found.l2 or 0.0, found.numel, 0, 0, 0, -1 if found.zero is None else found.zero,
    )  # fmt: skip
