"""Records eager ops: what the program runs outside of traced functions.

Two doors of the runtime are wrapped, through which every eager op of a Python program goes, on
any thread: the fast path of the generated op functions, and `execute` behind it. Nothing is
asked of the graph mode: while a function is traced, no op goes through them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import execute
from tensorflow.python.framework import op_def_registry
from tensorflow.python.framework.ops import EagerTensor

from tracelens.errors import NonFiniteError
from tracelens.events import NO_ID, OpFlag, Phase
from tracelens_tensorflow import hits, optables, tensors
from tracelens_tensorflow.eagerplaces import EagerSites, Place, find, held
from tracelens_tensorflow.eagervariables import name_of_handle
from tracelens_tensorflow.fastrecords import FastRecords
from tracelens_tensorflow.gradients import ForwardOps
from tracelens_tensorflow.recording import DATA, GARBAGE, VIEWS
from tracelens_tensorflow.tensors import RESOURCE

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_tensorflow.recording import Recorder

_EagerTensor = EagerTensor
_MAX_PLACES = 1 << 16
_ASKS = frozenset({"IsNan", "IsInf", "IsFinite"})
"""With these a program asks whether a value is bad; asked about a good one they are no news."""


class _Facts(NamedTuple):
    """What is known of a type of op.

    Attributes:
        n_inputs: how many of its arguments are inputs; a list counts once.
        flags: ``OpFlag`` bits that always hold.
        view: its output is its first input.
        writes: it writes a variable.
        data: it hands over a batch.
        skip: it holds no values: it makes handles or destroys them.
    """

    n_inputs: int
    flags: int
    view: bool
    writes: bool
    data: bool
    skip: bool


_MAX_OPTIONALS = 1024
"""Batches of iterators that are still to be unpacked, as a rule one."""


class _Here(threading.local):
    muted = False


class EagerOps:
    """Observes eager ops.

    Args:
        session: the recording.
        recorder: knows which value a tensor holds.
        report: takes the fields of sinks.
    """

    def __init__(
        self,
        session: Session,
        recorder: Recorder,
        report: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        self._session = session
        self._recorder = recorder
        self._report = report
        self.records = FastRecords(session, recorder)
        self._sites = EagerSites(session.writer)
        self._forward = ForwardOps(recorder.value_id)
        self._facts: dict[str, _Facts | None] = {}
        self._places: dict[int, Place] = {}
        self._here = _Here()
        self._optionals: set[int] = set()
        self._failed: set[str] = set()

    def install(self) -> Callable[[], None]:
        """Begin to observe; the result, called, ends it."""
        fast, slow = pywrap_tfe.TFE_Py_FastPathExecute, execute.execute
        here, after, clock = self._here, self._after, time.monotonic_ns

        def fast_path(ctx: Any, op_name: Any, name: Any, *args: Any) -> Any:
            if here.muted:
                return fast(ctx, op_name, name, *args)
            start = clock()
            result = fast(ctx, op_name, name, *args)
            after(op_name, args, result, start)
            return result

        def execute_op(
            op_name: Any, num_outputs: Any, inputs: Any, attrs: Any, ctx: Any, name: Any = None
        ) -> Any:
            if here.muted:
                return slow(op_name, num_outputs, inputs, attrs, ctx, name)
            start = clock()
            result = slow(op_name, num_outputs, inputs, attrs, ctx, name)
            after(op_name, None, result, start, inputs)
            return result

        pywrap_tfe.TFE_Py_FastPathExecute = fast_path
        execute.execute = execute_op
        unlink = self._forward.install()

        def uninstall() -> None:
            unlink()
            here.muted = True
            self.records.close()
            if pywrap_tfe.TFE_Py_FastPathExecute is fast_path:
                pywrap_tfe.TFE_Py_FastPathExecute = fast
            if execute.execute is execute_op:
                execute.execute = slow

        return uninstall

    @contextmanager
    def muted(self) -> Iterator[None]:
        """This thread's ops are not observed meanwhile."""
        before, self._here.muted = self._here.muted, True
        try:
            yield
        finally:
            self._here.muted = before

    def begin_step(self, *, active: bool) -> None:
        """A step begins; an inactive one is only checked."""
        self.records.full = active and self._session.config.capture != "guard"

    def take_hits(self) -> int:
        """Return how many ops had a bad output since the last call."""
        found, self.records.hits = self.records.hits, 0
        return found

    # Inside

    def _after(self, op_name: Any, args: Any, result: Any, start: int, inputs: Any = None) -> None:
        here = self._here
        here.muted = True
        try:
            self._record(op_name, args, result, start, inputs)
        except NonFiniteError:
            raise
        except Exception as error:
            self._fail(op_name, error)
        finally:
            here.muted = False

    def _record(self, op_name: Any, args: Any, result: Any, start: int, inputs: Any) -> None:
        kind = op_name if isinstance(op_name, str) else op_name.decode()
        try:
            facts = self._facts[kind]
        except KeyError:
            facts = self._facts[kind] = _facts_of(kind)
        if facts is None or facts.skip:
            return
        read = _flat(args[: facts.n_inputs] if inputs is None else inputs)
        if result is None:
            outputs = []
        else:
            outputs = [result] if type(result) is _EagerTensor else list(result)
        if facts.data and self._is_no_batch(kind, read, outputs):
            return
        records, recorder = self.records, self._recorder
        if not facts.writes and not records.full:
            if facts.view:
                recorder.pass_on(read, outputs, read[0] if read else None)
                return
            asked = kind in _ASKS and any(map(tensors.is_bad, read))
            if not asked and not any(map(tensors.is_float, outputs)):
                return
        duration, start_ns = (
            time.monotonic_ns() - start,
            start - self._session.writer.epoch_monotonic_ns,
        )
        place, forward = self._placed(read)
        phase = Phase.DATA if facts.data else place.phase
        site = self._sites.of(kind, place)
        if facts.view:
            records.view(kind, site, phase, read, outputs, start_ns=start_ns, duration_ns=duration)
            return
        written = None
        if facts.writes:
            outputs, written = _written(kind, read, outputs)
        op_id, bad = records.op(
            kind, site, phase, read, outputs, flags=facts.flags, fwd_op_id=forward,
            start_ns=start_ns, duration_ns=duration, written=written,
        )  # fmt: skip
        if not pywrap_tfe.TFE_Py_TapeSetIsEmpty():
            if phase is not Phase.BACKWARD:
                self._keep_place(op_id, place)
            self._forward.remember(kind, op_id, read, outputs)
        if bad and facts.writes:
            self._wrote_bad(outputs[0], written)

    def _is_no_batch(self, kind: str, read: list[Any], outputs: list[Any]) -> bool:
        """Tell whether an op unpacks no iterator's batch: Keras' steps return their losses so."""
        if kind == "OptionalGetValue":
            return bool(read) and read[0]._id not in self._optionals
        if kind == "IteratorGetNextAsOptional":
            if len(self._optionals) >= _MAX_OPTIONALS:
                self._optionals.clear()
            self._optionals.update(tensor._id for tensor in outputs)
        return False

    def _placed(self, read: list[Any]) -> tuple[Place, int]:
        """Return where the op stands (a backward op: where its forward op does), and that op."""
        if held.place is not None:
            return held.place, NO_ID
        if not self._forward.running.depth:
            return find(4, backward=False), NO_ID
        forward = self._forward.current(read)
        of_forward = self._places.get(forward)
        if of_forward is not None and self._forward.in_library():
            return of_forward, forward
        place = find(4, backward=True)
        return (place if of_forward is None or place.own else of_forward), forward

    def _keep_place(self, op_id: int, place: Place) -> None:
        """Remember where the backward ops of an op stand."""
        if len(self._places) >= _MAX_PLACES:
            for old in list(self._places)[: _MAX_PLACES // 2]:
                del self._places[old]
        self._places[op_id] = place._replace(phase=Phase.BACKWARD)

    def _wrote_bad(self, handle: Any, value: Any) -> None:
        step, value_id = self._session.current_step, self._recorder.value_id(handle)
        name = name_of_handle(handle)
        if not name:
            return
        self._report([hits.sink_fields("parameter", name, step, value, value_id)])
        if self._session.config.nonfinite in ("raise", "break"):
            self._session.explain_pending()

    def _fail(self, op_name: Any, error: Exception) -> None:
        line = (str(error).splitlines() or [""])[0][:200]
        message = f"an eager {op_name} was not recorded: {type(error).__name__}: {line}"
        if message not in self._failed and len(self._failed) < 16:
            self._failed.add(message)
            self._session.note("hook_failed", message, "error")


def _flat(arguments: Sequence[Any]) -> list[Any]:
    """Return the eager tensors among an op's inputs; a variable is known by its handle."""
    found: list[Any] = []
    for argument in arguments:
        if type(argument) is _EagerTensor:
            found.append(argument)
        elif isinstance(argument, list | tuple):
            found += _flat(argument)
        else:
            handle = getattr(argument, "handle", None)
            if type(handle) is _EagerTensor:
                found.append(handle)
    return found


def _written(kind: str, read: list[Any], outputs: list[Any]) -> tuple[list[Any], Any]:
    """Return the handle that an op wrote to, and what the variable holds now."""
    if not read or read[0]._datatype_enum() != RESOURCE:
        return outputs, None
    value = read[-1] if kind == "AssignVariableOp" and len(read) > 1 else tensors.seen(read[0])
    return [read[0], *outputs], value


_SKIPPED = (
    "Iterator", "AnonymousIterator", "MakeIterator", "DeleteIterator", "Destroy", "VarHandleOp",
    "VarIsInitialized", "MultiDeviceIterator", "AnonymousMultiDevice", "DeleteMultiDevice",
    "DeleteMemoryCache", "DeleteRandomSeed", "DeleteSeed", "Dataset",
)  # fmt: skip


def _facts_of(kind: str) -> _Facts | None:
    """Return what is known of a type of op, None for what is none (a function)."""
    definition = op_def_registry.get(kind)
    if definition is None or kind.startswith("TraceLens"):
        return None
    writes = kind in optables.WRITES or kind.startswith(optables.APPLIES)
    flags = OpFlag.HARMLESS if kind in optables.CANNOT_CREATE or kind == "Const" else OpFlag(0)
    if kind in GARBAGE:
        flags |= OpFlag.GARBAGE
    data = kind in DATA
    skip = not data and (
        kind.startswith(_SKIPPED) or kind.endswith("Dataset") or "DatasetV" in kind
    )
    return _Facts(len(definition.input_arg), int(flags), kind in VIEWS, writes, data, skip)
