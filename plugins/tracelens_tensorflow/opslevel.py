"""``capture="ops"`` for traced functions: every op is recorded with its outputs' statistics.

On the CPU a call runs a twin whose probes write the records from C++. Where that cannot be (XLA
would compile the function, there is no compiler, a GPU is in use), the call is run op by op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracelens.events import SLOT_BITS
from tracelens_tensorflow import checking, effects
from tracelens_tensorflow.byop import ByOp, sink_of
from tracelens_tensorflow.interpreter import NotInterpretable
from tracelens_tensorflow.native.recorder import Hit, Level, NativeRecorder
from tracelens_tensorflow.probing import ProbeBuilder
from tracelens_tensorflow.tensors import RESOURCE, VARIANT

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_tensorflow.calls import Call
    from tracelens_tensorflow.recording import Recorder

_PART = "_tracelens_probed"
_NOBODY: tuple[Any, Any] = (None, None)


class OpsLevel:
    """Runs the program's calls with every op recorded.

    Args:
        session: the recording.
        recorder: knows which values eager tensors and variables hold.
        use_ops: asked, when a function is first called, whether to use the compiled ops.
    """

    def __init__(
        self,
        session: Session,
        recorder: Recorder,
        use_ops: Callable[[], bool],
    ) -> None:
        self._session = session
        self._recorder = recorder
        self._found: list[dict[str, Any]] | None = None
        self._use_ops = use_ops
        self._native: NativeRecorder | None = None
        self._builder: ProbeBuilder | None = None
        self._begun = False
        self._active = session.config.is_active(session.current_step)
        self._keys: dict[int, int] = {}
        self._written: dict[bytes, tuple[int, ...]] = {}
        self._noted: set[str] = set()
        self._hits_before = 0
        self.by_op = ByOp(session, recorder)

    def stop(self) -> None:
        """Stop recording; probes that still run are idle."""
        self._active = False
        self.by_op.records.close()
        if self._native is not None:
            self._native.close()
            if self._native.dropped:
                self._session.writer.count_dropped(self._native.dropped)

    def begin_step(self, step: int, *, active: bool) -> None:
        """A step begins; one that is not active is left to the checks of guard level."""
        self._active = active
        if self._native is not None:
            self._native.set_step(step, Level.MEASURED if active else Level.OFF)
            self._hits_before = self._native.hits
        self.by_op.hits = 0

    @property
    def hits(self) -> int:
        """Ops with a bad output since the step began."""
        probed = 0 if self._native is None else self._native.hits - self._hits_before
        return probed + self.by_op.hits

    def run(self, call: Call) -> list[Any] | None:
        """Run a call with every op recorded.

        Args:
            call: what the program is about to call.

        Returns:
            Its outputs; None if the step is not recorded, or the call cannot be. Errors of the
            program's own ops are the program's.
        """
        if not self._active:
            return None
        if not self._begun:
            self._begin()
        probed = None if self._chosen(call) else self._probed(call.function)
        if probed is not None:
            return self._run_probed(call, probed)
        try:
            effects.effects_of(call.graph)  # refuses before anything has run
            outputs, self._found = self.by_op.run(call)
        except NotInterpretable as reason:
            self._note(f"{call.name} is not recorded op by op: {reason}")
            return None
        return outputs

    def _chosen(self, call: Call) -> bool:
        """Tell whether values are to be stored, which only a run op by op can read."""
        values = self.by_op.values
        return values is not None and bool(values.places_of(call.function))

    def take_sinks(self) -> list[dict[str, Any]] | None:
        """Return the sinks of the call that ran last, as fields of ``sink`` events, once.

        Returns:
            None if it was not recorded op by op.
        """
        found, self._found = self._found, None
        return found

    def _begin(self) -> None:
        """Load the compiled ops, once the program has chosen devices and threads."""
        self._begun = True
        try:
            if not self._use_ops():
                return
        except Exception as error:
            self._note(f"the compiled ops cannot be used: {error!r}")
            return
        session = self._session
        self._native = NativeRecorder(session.writer)
        self._native.open()
        self._native.set_step(session.current_step, Level.MEASURED)
        self._hits_before = self._native.hits
        self._builder = ProbeBuilder(self._native, session.writer, checking.sinks_of)

    # Probes

    def _probed(self, function: Any) -> Any:
        """Return the function with probes in it, None if it has to be run op by op."""
        if self._builder is None:
            return None
        owner, twin = function.__dict__.get(_PART, _NOBODY)
        if owner is not self:
            try:
                part = self._builder.build(function)
                twin = None if self._builder.met_xla else part.function
            except Exception as error:
                twin = None
                self._note(f"{function.name.decode()} could not be probed: {error!r}")
            setattr(function, _PART, (self, twin))
        return twin

    def _run_probed(self, call: Call, probed: Any) -> list[Any]:
        handles: dict[int, int] = {}
        try:
            handles = self._tell_arguments(call)
        except Exception as error:
            self._note(f"the arguments of {call.name} were not told apart: {error!r}")
        outputs: list[Any] = probed.run(call.args, len(call.function.function_type.flat_outputs))
        self._found = []
        try:
            self._take_over(call, outputs, handles)
        except Exception as error:
            self._note(f"what {call.name} returned was not followed: {error!r}")
        return outputs

    def _take_over(self, call: Call, outputs: list[Any], handles: dict[int, int]) -> None:
        """Learn which values a call returned and left in variables, and what went bad."""
        recorder, native = self._recorder, self._native
        assert native is not None
        for output in outputs:
            place = _memory_of(output)
            if place is not None:
                value_id = native.find(*place)
                if value_id >= 0:
                    recorder.adopt(output, value_id)
        written = [position for position in self._written_by(call) if position in handles]
        if written:
            ids = native.find_variables([handles[position] for position in written])
            for position, value_id in zip(written, ids, strict=True):
                recorder.adopt(call.args[position], value_id)
        self._found = self._sinks(native.take_hits(), call)

    def _tell_arguments(self, call: Call) -> dict[int, int]:
        """Tell the probes which values the arguments hold; return the keys of variables."""
        recorder, native = self._recorder, self._native
        assert native is not None
        handles: dict[int, int] = {}
        unknown: list[int] = []
        for position, tensor in enumerate(call.args):
            if tensor._datatype_enum() == RESOURCE:
                key = self._keys.get(tensor._id)
                if key is None:
                    unknown.append(position)
                else:
                    handles[position] = key
                continue
            place = _memory_of(tensor)
            if place is not None:
                # Memory is used again: what is known of its last owner must not stand.
                native.put(*place, recorder.value_id(tensor))
        if unknown:
            keys = native.keys_of([call.args[position] for position in unknown])
            for position, key in zip(unknown, keys, strict=True):
                handles[position] = self._keys[call.args[position]._id] = key
        if handles:
            ids = [recorder.value_id(call.args[position]) for position in handles]
            native.put_variables(list(handles.values()), ids)
        return handles

    def _written_by(self, call: Call) -> tuple[int, ...]:
        name = call.function.name
        known = self._written.get(name)
        if known is None:
            try:
                written = effects.effects_of(call.graph).writes
            except NotInterpretable:
                written = {
                    place
                    for place, tensor in enumerate(call.args)
                    if tensor._datatype_enum() == RESOURCE
                }
            known = self._written[name] = tuple(p for p in sorted(written) if p < len(call.args))
        return known

    def _sinks(self, found: Sequence[Hit], call: Call) -> list[dict[str, Any]]:
        """Return the sinks among bad outputs, each with the last bad value it took."""
        assert self._builder is not None
        sinks: dict[tuple[str, str], tuple[int, Hit]] = {}
        for hit in found:
            probed = self._builder.probed[hit.graph]
            for slot in range(16):
                if hit.slots >> slot & 1:
                    sink = probed.sinks.get(hit.op << SLOT_BITS | slot)
                    if sink is not None:
                        sinks[sink] = (slot, hit)
        return [
            sink_of(self._session, kind, name, hit.op_id, slot, call.step)
            for (kind, name), (slot, hit) in sinks.items()
        ]

    def _note(self, message: str) -> None:
        if message not in self._noted:
            self._noted.add(message)
            self._session.note("hook_failed", message, "warning")


def _memory_of(tensor: Any) -> tuple[int, int] | None:
    """Return address and size of an eager tensor's memory, None if it has none of its own."""
    if tensor._datatype_enum() in (RESOURCE, VARIANT):
        return None
    try:
        interface = tensor._numpy().__array_interface__
    except Exception:  # strings, other devices
        return None
    size = tensor.shape.num_elements() * tensor.dtype.size
    return (interface["data"][0], size) if size else None
