"""Records every op a dispatch mode sees, in Python.

Does what ``tracelens/stats/native/recorder.h`` does where the extension is missing, and what
the extension leaves to Python: durations, layouts and statistics of every op.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any

import torch

from tracelens import stats
from tracelens.events import NO_ID, OpFlag, Phase
from tracelens_torch.frames import CodeKind, classify_code
from tracelens_torch.nonfinite import is_nonfinite
from tracelens_torch.opfacts import KEYWORD, Facts, Trait, describe, tensor_kind
from tracelens_torch.opwriter import OpRun, OpWriter, thread_id, value_of
from tracelens_torch.ranges import ValueRanges

if TYPE_CHECKING:
    from tracelens_torch.sites import Sites

_MAX_FRAMES = 96
_MAX_FRAMES_BEYOND_USER = 24
_MAX_FORWARD = 1 << 16
_TESTS = int(Trait.TESTS | Trait.SELF_TEST)
_UNCHECKED = int(OpFlag.GARBAGE | OpFlag.CONSTANT)
_EXPONENT_BITS = {
    torch.float8_e4m3fn: 4, torch.float16: 5, torch.float8_e5m2: 5, torch.float32: 8,
    torch.bfloat16: 8, torch.complex64: 8,
}  # fmt: skip

_sequence_nr: Callable[[], int] = torch._C._autograd._get_sequence_nr
_current_node: Callable[[], Any] = torch._C._current_autograd_node


class _Thread(threading.local):
    """What one thread's ops need of each other."""

    last_seq = -1
    forward: dict[int, tuple[int, int]] | None = None


class PythonRecorder:
    """Runs ops and records them.

    Args:
        records: writes the records.
        sites: makes site ids.
        on_sink: called with kind, tensor, op id, value id of a bad value that the user reads
            or that a backward starts from. What it raises goes to the user.
        on_failure: called with an error of the recorder itself; True lets it through.
        on_op: called after each op with its facts and run, if given.

    Attributes:
        full: record views, durations, layouts and statistics of every output.
        phase: phase of ops outside a backward, ``OTHER`` for forward.
        muted: run ops without recording them.
        any_device: look at tensors of accelerators too, which waits for the device: for replays.
    """

    def __init__(
        self,
        records: OpWriter,
        sites: Sites,
        reserve_op_id: Callable[[], int],
        on_sink: Callable[[str, Any, int, int], None],
        on_failure: Callable[[BaseException], bool],
        on_op: Callable[[Facts, OpRun], None] | None = None,
    ) -> None:
        self._records = records
        self._make_site = sites.make
        self._reserve_op_id = reserve_op_id
        self._on_sink = on_sink
        self._on_failure = on_failure
        self._on_op = on_op
        self._facts: dict[int, tuple[Any, Facts]] = {}
        self._codes: dict[CodeType, CodeKind] = {}
        self._sites: dict[tuple[Any, ...], int] = {}
        self._kinds: dict[type, int] = {}
        self._thread = _Thread()
        self._last_forward: dict[int, tuple[int, int]] = {}
        self._values = ValueRanges()
        self._values_lock = threading.Lock()
        self.full = False
        self.phase = int(Phase.OTHER)
        self.muted = False
        self.check = True
        self.any_device = False
        self.ops = 0
        self.hits = 0
        self.failures = 0

    @property
    def step(self) -> int:
        """Step of the ops to come."""
        return self._records.step

    @step.setter
    def step(self, step: int) -> None:
        self._records.step = step

    def dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an op and record it. Only the op's own errors reach the caller."""
        known = self._facts.get(id(func))
        if known is None:
            known = self._facts[id(func)] = (func, describe(func))
        facts = known[1]
        if self.muted or facts.traits & Trait.SKIP:
            return facts.target(*args, **kwargs)
        try:
            run = self._before(facts, args, kwargs)
        except Exception as error:
            run = None
            self._failed(error)
        start_ns = self._records.now_ns()
        result = facts.target(*args, **kwargs)
        if run is not None:
            run.start_ns = start_ns
            if self.full:
                run.duration_ns = self._records.now_ns() - start_ns
            try:
                self._after(facts, run, result)
            except Exception as error:
                self._failed(error)
        return result

    def value_id(self, tensor: torch.Tensor) -> int:
        """Return the id of the value a tensor holds, -1 if no recorded op wrote it."""
        low, high = self._range(tensor)
        with self._values_lock:
            return self._values.find(low, high) if high > low else NO_ID

    def wrote(self, tensors: Sequence[Any], op_id: int, only_unknown: bool = False) -> int:
        """Give tensors the values of an op that was not seen; return how many had one kept."""
        known = 0
        for slot, tensor in enumerate(tensors):
            low, high = self._range(tensor)
            with self._values_lock:
                if only_unknown and self._values.find(low, high) >= 0:
                    known += 1
                else:
                    self._values.write(low, high, value_of(op_id, slot), False)
        return known

    def record_update(
        self, parameters: list[torch.Tensor], gradients: list[torch.Tensor], site: int
    ) -> int:
        """Record an optimizer's step whose ops were not seen.

        Args:
            parameters: what it wrote.
            gradients: what it read.
            site: interned site.

        Returns:
            The index of the first bad parameter, or -1.
        """
        op_id = self._reserve_op_id()
        inputs = [(gradient, self.value_id(gradient)) for gradient in gradients]
        bad = next((i for i, tensor in enumerate(parameters) if self.is_bad(tensor)), -1)
        self.wrote(parameters, op_id)
        flags = OpFlag.INPLACE | OpFlag.CHECKED | (OpFlag.HIT if bad >= 0 else 0)
        outputs = [(tensor, value_of(op_id, slot)) for slot, tensor in enumerate(parameters)]
        self._records.op(
            OpRun(
                op_id, int(flags), int(Phase.OPTIMIZER), site, NO_ID, self._records.now_ns(),
                tid=thread_id(), inputs=inputs, outputs=outputs,
            )
        )  # fmt: skip
        return bad

    def adopt(self, tensor: torch.Tensor, value_id: int) -> None:
        """Let a tensor have the producer of a value."""
        low, high = self._range(tensor)
        with self._values_lock:
            self._values.write(low, high, value_id, False)

    def resume(self) -> None:
        """Ops ran on this thread that were not seen."""
        self._thread.last_seq = _sequence_nr()

    def forget_sites(self) -> None:
        """Module identities changed meaning."""
        self._sites.clear()

    def close(self) -> None:
        """Record nothing from now on and let go of what was remembered."""
        self.muted = True
        self._values.clear()
        self._sites.clear()

    # Before an op

    def _before(self, facts: Facts, args: Any, kwargs: Any) -> OpRun | None:
        thread = self._thread
        seq = _sequence_nr()
        made_node = seq != thread.last_seq and thread.last_seq >= 0
        thread.last_seq = seq
        view = facts.flags & OpFlag.VIEW
        if view and not made_node and not self.full:
            return None
        phase, fwd_op_id, site, flags, starts_backward = self._origin(facts)
        if view and not self.full:
            self._remember(seq - 1, NO_ID, site)
            return None
        inputs: list[tuple[Any, int]] = []
        flags |= facts.flags
        for position, argument in enumerate(args):
            flags |= self._see(argument, inputs)
            if not position and facts.flags & OpFlag.INPLACE:
                self._follow_writes(inputs)
        for argument in kwargs.values():
            flags |= self._see(argument, inputs)
        if flags < 0:
            return None
        op_id = self._reserve_op_id()
        if made_node:
            self._remember(seq - 1, op_id, site)
        if starts_backward and facts.traits & Trait.ONES_LIKE and inputs:
            loss, value_id = inputs[0]
            if self.is_bad(loss):
                self._on_sink("loss", loss, op_id, value_id)
        if facts.traits & _TESTS and inputs and self._asks_for_bad(facts, inputs):
            self._on_sink("exception", inputs[0][0], op_id, inputs[0][1])
        run = OpRun(op_id, flags, phase, site, fwd_op_id, tid=thread_id(), inputs=inputs)
        if facts.written:
            run.outputs = self._written(facts, args, kwargs)
        return run

    def _follow_writes(self, inputs: list[tuple[Any, int]]) -> None:
        """What an in-place op overwrites was the result of the last write to that memory."""
        for slot, (tensor, value_id) in enumerate(inputs):
            if value_id >= 0:
                with self._values_lock:
                    inputs[slot] = (tensor, self._values.newest(self._range(tensor)[0]))

    def _asks_for_bad(self, facts: Facts, inputs: list[tuple[Any, int]]) -> bool:
        same = len(inputs) == 2 and inputs[0][0] is inputs[1][0]
        return bool(facts.traits & Trait.TESTS or same) and self.is_bad(inputs[0][0])

    def _written(self, facts: Facts, args: Any, kwargs: Any) -> list[tuple[Any, int]]:
        found: list[tuple[Any, int]] = []
        for position in facts.written:
            values = kwargs.values() if position == KEYWORD else args[position : position + 1]
            for value in values:
                self._see(value, found)
        return found

    def _remember(self, seq: int, op_id: int, site: int) -> None:
        forward = self._thread.forward
        if forward is None or len(forward) >= _MAX_FORWARD:
            forward = self._thread.forward = {}
        forward[seq] = (op_id, site)
        self._last_forward = forward

    def _origin(self, facts: Facts) -> tuple[int, int, int, int, bool]:
        """Return phase, forward op, site, flags, and whether a backward starts here."""
        phase = self.phase or int(Phase.FORWARD)
        fwd_op_id, forward_site, flags = NO_ID, 0, 0
        node = _current_node()
        if node is not None:
            if phase != Phase.OPTIMIZER:
                phase = int(Phase.BACKWARD)
            # The engine's own threads make no forward ops: theirs are the calling thread's.
            forward = self._thread.forward
            forward = self._last_forward if forward is None else forward
            fwd_op_id, forward_site = forward.get(node._sequence_nr(), (NO_ID, 0))
        code, lasti, module, in_engine, in_make_grads = self._place(forward_site > 0)
        if in_make_grads:
            phase = int(Phase.BACKWARD)
        user = code is not None and not in_engine
        if user:
            forward_site = 0
        elif not forward_site:
            flags = int(OpFlag.INEXACT_SOURCE)
        if forward_site:
            key: tuple[Any, ...] = (facts.name, forward_site)
            code = module = None
        else:
            key = (facts.name, code, lasti, id(module))
        site = self._sites.get(key)
        if site is None:
            exact = int(user or forward_site > 0)
            site = self._make_site(facts.name, code, lasti, module, forward_site, exact)
            if len(self._sites) >= 1 << 18:
                self._sites.clear()
            self._sites[key] = site
        return phase, fwd_op_id, site, flags, in_make_grads

    def _place(self, stop_at_engine: bool) -> tuple[CodeType | None, int, Any, bool, bool]:
        """Return the user's code and instruction, the module called, and what stands between.

        Args:
            stop_at_engine: what called the autograd engine is of no interest.
        """
        code: CodeType | None = None
        lasti, module, in_engine, in_make_grads = -1, None, False, False
        frame = sys._getframe(3)
        left = _MAX_FRAMES
        codes = self._codes
        while frame is not None and left > 0:
            left -= 1
            kind = codes.get(frame.f_code)
            if kind is None:
                kind = codes[frame.f_code] = classify_code(frame.f_code)
            if kind is CodeKind.ENGINE:
                in_engine = in_engine or code is None
                if stop_at_engine or code is not None:
                    break
            elif kind is CodeKind.MAKE_GRADS:
                in_make_grads = code is None
            elif kind is CodeKind.MODULE_CALL:
                if module is None:
                    module = frame.f_locals.get("self")
                if code is not None:
                    break
            elif kind is CodeKind.USER and code is None:
                code, lasti = frame.f_code, frame.f_lasti
                left = min(left, _MAX_FRAMES_BEYOND_USER)
                if module is not None:
                    break
            frame = frame.f_back  # type: ignore[assignment]
        return code, lasti, module, in_engine, in_make_grads

    def _see(self, argument: Any, out: list[tuple[Any, int]]) -> int:
        """Add the tensors of an argument; return flags, negative if the op is only traced."""
        if isinstance(argument, torch.Tensor):
            kind = self._kind(type(argument))
            if kind == 2:
                return -(1 << 32)
            low, high = self._range(argument) if kind else (0, 0)
            with self._values_lock:
                out.append((argument, self._values.find(low, high) if high > low else NO_ID))
            return 0 if high > low or (kind and not argument.numel()) else OpFlag.UNSEEN_INPUTS
        if isinstance(argument, float):
            return 0 if math.isfinite(argument) else OpFlag.CONSTANT
        if isinstance(argument, (list, tuple)):
            flags = 0
            for item in argument:
                if isinstance(item, torch.Tensor):
                    flags |= self._see(item, out)
            return flags
        return 0

    def _kind(self, tensor_type: type) -> int:
        kind = self._kinds.get(tensor_type)
        if kind is None:
            kind = self._kinds[tensor_type] = tensor_kind(tensor_type)
        return kind

    def _range(self, tensor: Any) -> tuple[int, int]:
        """Return the bytes from the first to past the last element; ``(0, 0)`` if unknown."""
        try:
            low = tensor.data_ptr()
            if not low:
                return 0, 0
            if tensor.is_contiguous():
                return low, low + tensor.numel() * tensor.element_size()
            extent = 1 + sum(
                (size - 1) * stride
                for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
            )
            return low, low + (extent * tensor.element_size() if tensor.numel() else 0)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return 0, 0

    # After it

    def _after(self, facts: Facts, run: OpRun, result: Any) -> None:
        parameter = (
            run.flags & OpFlag.INPLACE
            and run.inputs
            and type(run.inputs[0][0]) is torch.nn.Parameter
        )
        judge = not facts.flags & _UNCHECKED and not facts.traits & Trait.UNCHECKED
        # Checked even so: a bad value copied into a parameter is where it starts to matter.
        judge = judge and bool(not facts.flags & OpFlag.HARMLESS or parameter)
        written, run.outputs = run.outputs, []
        wrote = any_output = False
        items = result if isinstance(result, (tuple, list)) else (result,)
        for item in items:
            if isinstance(item, torch.Tensor):
                any_output = True
                wrote |= self._output(facts, run, item, bool(facts.flags & OpFlag.INPLACE))
        for tensor, _ in written:
            any_output = wrote = True
            self._output(facts, run, tensor, True)
        if facts.traits & Trait.SCALAR_READ and isinstance(result, float):
            run.flags |= OpFlag.CHECKED
            if not math.isfinite(result) and run.inputs:
                self._records.op(run, full=self.full)
                self._on_sink("read", run.inputs[0][0], run.op_id, run.inputs[0][1])
                return
        if any_output and not wrote:
            run.flags |= OpFlag.VIEW
            if not self.full:
                return
        self.ops += 1
        if facts.traits & Trait.CAST and self._narrows(run):
            run.flags &= ~OpFlag.HARMLESS
            judge = True
        if judge and wrote and self.check:
            run.flags |= OpFlag.CHECKED
            if any(self.is_bad(tensor) for tensor, _ in run.outputs):
                run.flags |= OpFlag.HIT
                self.hits += 1
        self._records.op(run, full=self.full)
        if self._on_op is not None:
            self._on_op(facts, run)

    def _output(self, facts: Facts, run: OpRun, tensor: Any, in_place: bool) -> bool:
        """Register an output; False if it only shows an input that was not written."""
        outputs: Any = run.outputs
        if self._kind(type(tensor)) != 1:
            outputs.append((tensor, NO_ID))
            return True
        low, high = self._range(tensor)
        shown = None
        for other, value_id in run.inputs:
            first, last = self._range(other)
            if first <= low < last:
                shown = value_id
                break
        if shown is not None and not in_place:
            outputs.append((tensor, shown))
            return False
        value_id = value_of(run.op_id, len(outputs)) if high > low else NO_ID
        with self._values_lock:
            self._values.write(low, high, value_id, shown is None)
        outputs.append((tensor, value_id))
        return True

    def _narrows(self, run: OpRun) -> bool:
        if not run.outputs or not run.inputs:
            return False
        made, source = run.outputs[0][0].dtype, run.inputs[-1][0].dtype
        return _EXPONENT_BITS.get(made, 11) < _EXPONENT_BITS.get(source, 11)

    def is_bad(self, tensor: Any) -> bool:
        """Return whether a tensor holds a NaN or an Inf; False where nobody may look."""
        if self._kind(type(tensor)) != 1:
            return False
        if self.any_device and not tensor.is_cpu:
            return is_nonfinite(tensor)
        found = stats.native.check(tensor) if stats.HAS_NATIVE else -1
        return bool(found) if found >= 0 else torch_is_bad(tensor)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if self._on_failure(error):
            raise error


def torch_is_bad(tensor: torch.Tensor) -> bool:
    """Return whether a dense CPU tensor holds a NaN or an Inf, with torch alone.

    A NaN or Inf makes a sum non-finite; so may an overflow, hence the exact second look.
    """
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or not tensor.numel():
        return False
    with torch.no_grad():
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        elif not tensor.is_floating_point():
            return False
        if tensor.element_size() == 1:
            return stats.check(tensor) == 1
        wide = torch.float32 if tensor.element_size() == 2 else None
        if math.isfinite(tensor.sum(dtype=wide).item()):
            return False
        return not bool(torch.isfinite(tensor).all())
