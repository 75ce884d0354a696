"""The pure-Python engine: a dispatch mode that sees every op of the thread that entered it.

Used where no C++ observer can be compiled, for captured values, and for replays. With the
stable-ABI extension the mode's handler runs in C at guard level (``_native.Recorder``); without
it, and at the other levels, in Python (``handler.PythonRecorder``).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from tracelens import stats
from tracelens.errors import NonFiniteError
from tracelens.events import NO_ID, OpFlag, Phase
from tracelens.storage.format import HEADER_HEAD_OFFSET, HEADER_SEALED_OFFSET
from tracelens_torch import nonfinite
from tracelens_torch.captured import ValueCapture
from tracelens_torch.frames import classify_code, user_place
from tracelens_torch.handler import PythonRecorder
from tracelens_torch.modules import ModuleNames
from tracelens_torch.opfacts import describe, tensor_kind
from tracelens_torch.opwriter import OpRun, OpWriter, Pairs, thread_id, value_of
from tracelens_torch.sinks import SinkFilter
from tracelens_torch.sites import Sites

if TYPE_CHECKING:
    from tracelens.session import Session


class _Mode(TorchDispatchMode):
    """What every mode here has in common."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Do without the wrapper that keeps dynamo out: it costs as much as an op's handling."""
        return False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave compiled regions compiled."""
        return True


class _PythonMode(_Mode):
    def __init__(self, recorder: PythonRecorder) -> None:
        super().__init__()
        self._dispatch = recorder.dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._dispatch(func, args, kwargs or {})


class _ReplayMode(_PythonMode):
    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Run compiled regions op by op."""
        return False


if stats.HAS_NATIVE:

    class _NativeMode(stats.native.Recorder, _Mode):
        """Its ``__torch_dispatch__`` is the C recorder's method."""

        def __init__(self) -> None:
            TorchDispatchMode.__init__(self)


class DispatchEngine:
    """Observes ops through a dispatch mode.

    Args:
        session: the recording.
        modules: names of modules and parameters.
        replay: a step is being run again: everything is recorded, flagged as replayed, and
            compiled regions run op by op.
        native: handle ops in C where that can be done; False is for tests and benchmarks.
    """

    name = "python"

    def __init__(
        self,
        session: Session,
        *,
        modules: ModuleNames | None = None,
        replay: bool = False,
        native: bool = True,
    ) -> None:
        self._session = session
        self._modules = modules or ModuleNames(self.forget_modules)
        self._replay = replay
        self._full = replay or session.config.capture != "guard"
        self._native_wanted = native and stats.HAS_NATIVE and not self._full
        self._sites = Sites(session.writer, self._modules)
        self._sinks = SinkFilter(session, self._modules)
        self._pending: list[dict[str, Any]] = []
        self._tested: dict[str, Any] | None = None
        self._records = OpWriter(session.writer)
        self._own_sites: dict[tuple[Any, ...], int] = {}
        self._values: ValueCapture | None = None
        # Threads, not their numbers: the next thread gets the number of one that ended.
        self._entered: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._left = False
        self._hits_before = 0
        self._noted = False
        self._patient = False

    # One recording's life

    def start(self) -> None:
        """Begin to observe the calling thread."""
        if self._replay:
            self._records.extra_flags = int(OpFlag.REPLAYED)
        if self._session.config.capture == "tensors" and not self._replay:
            self._values = ValueCapture(self._session, self._modules, self.value_id)
            self._values.install()
        self._recorder: Any = self._native_recorder() if self._native_wanted else None
        if self._recorder is not None:
            self._mode: TorchDispatchMode = self._recorder
        else:
            self._recorder = PythonRecorder(
                self._records, self._sites, self._session.writer.reserve_op_id, self._on_sink,
                self._on_failure,
            )  # fmt: skip
            self._recorder.full = self._full
            self._recorder.any_device = self._replay
            self._mode = (_ReplayMode if self._replay else _PythonMode)(self._recorder)
        self._recorder.step = self._records.step = self._session.current_step
        self._enter()

    def stop(self) -> None:
        """Stop observing; what was seen last is reported."""
        self.drain()
        self._recorder.muted = True
        if self._values is not None:
            self._values.remove()
        if not self._exit() and self._entered:
            self._note("a mode of another thread or of the program's own is in the way: the "
                       "dispatch mode stays, idle")  # fmt: skip
        dropped = int(getattr(self._recorder, "dropped", 0))
        if dropped:
            self._session.writer.count_dropped(dropped)
            self._session.note(
                "drop",
                f"{dropped} op records were dropped: the disk could not keep up",
                severity="warning",
            )
        if not self._entered:
            self._recorder.close()

    def abandon(self) -> None:
        """In a forked child: observe nothing and write nothing."""
        self._recorder.muted = True
        self._exit()

    def begin_step(self, step: int, active: bool) -> None:
        """A step begins.

        Args:
            step: its number.
            active: whether ops are recorded in full; otherwise they are only checked.
        """
        self._recorder.step = self._records.step = step
        if self._full:
            self._recorder.full = active
        if self._values is not None:
            self._values.step(step, active)
        self._hits_before = self._recorder.hits
        if self._left:
            # The update before raised, so nobody told of its end.
            self.end_update()
        elif threading.current_thread() not in self._entered:
            self._enter()

    def end_step(self, step: int) -> dict[str, float]:
        """A step ended: report what it left; return its counters."""
        self.drain()
        return {"hits": float(self._recorder.hits - self._hits_before)}

    # What the backend asks and tells

    @property
    def hushes(self) -> bool:
        """Whether ops of a ``torch.optim`` step go unobserved."""
        return not self._full

    @property
    def suspicious(self) -> bool:
        """Whether any op of this step made a non-finite value."""
        return bool(self._recorder.hits != self._hits_before)

    @property
    def in_c(self) -> bool:
        """Whether ops are handled by the extension."""
        return not isinstance(self._recorder, PythonRecorder)

    def register_data(self, tensors: Sequence[torch.Tensor], name: str) -> int:
        """Give tensors that come from outside a producer of phase ``data``; return its op id."""
        with self.muted():
            wanted = [
                tensor
                for tensor in tensors
                if isinstance(tensor, torch.Tensor)
                and (name != "step_input" or self.value_id(tensor) < 0)
            ]
            if not wanted:
                return NO_ID
            site = self._site(name)
            known = [(tensor, self.value_id(tensor)) for tensor in wanted]
            op_id = self._session.writer.reserve_op_id()
            self._recorder.wrote(wanted, op_id)
            bad = self.nonfinite(wanted) >= 0
            flags = OpFlag.CHECKED | (OpFlag.HIT if bad else 0)
            outputs = [(tensor, value_of(op_id, slot)) for slot, tensor in enumerate(wanted)]
            run = OpRun(op_id, int(flags), int(Phase.DATA), site, NO_ID, self._records.now_ns(),
                        -1, thread_id(), known, outputs)  # fmt: skip
            self._records.op(run, full=self._full)
            return op_id

    def value_id(self, tensor: torch.Tensor) -> int:
        """Return the id of the value a tensor holds, -1 if no recorded op wrote it."""
        return int(self._recorder.value_id(tensor))

    def check(self, kind: str, tensors: Sequence[torch.Tensor], names: Sequence[str]) -> int:
        """Report those of the tensors that hold a non-finite value; return how many do."""
        with self.muted():
            bad = 0
            for tensor, name in zip(tensors, names, strict=True):
                if self._values is not None and kind in ("tap", "gradient"):
                    self._values.keep(name if kind == "tap" else f"{name}.grad", tensor)
                if self._is_bad(tensor):
                    bad += 1
                    value_id = self.value_id(tensor)
                    self._pending.append(self._sink(kind, name, tensor, NO_ID, value_id))
            return bad

    def nonfinite(self, tensors: Sequence[torch.Tensor]) -> int:
        """Return the index of the first tensor that holds a non-finite value, or -1."""
        if stats.HAS_NATIVE and all(tensor.is_cpu for tensor in tensors):
            return int(stats.native.first_nonfinite(list(tensors)))
        with self.muted():
            return next((i for i, tensor in enumerate(tensors) if self._is_bad(tensor)), -1)

    def record_update(self, parameters: Sequence[torch.Tensor], name: str) -> int:
        """Tell what an optimizer's step wrote, where its ops were not observed.

        Args:
            parameters: those that were updated.
            name: what to call the update (``"Adam.step"``).

        Returns:
            The index of the first parameter that holds a non-finite value, or -1.
        """
        if self._full:
            return self.nonfinite(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        with self.muted():
            return int(self._recorder.record_update(list(parameters), gradients, self._site(name)))

    def adopt(self, tensors: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> None:
        """Let tensors have the producers that others have, one for one."""
        with self.muted():
            for tensor, other in zip(tensors, of, strict=True):
                self._recorder.adopt(tensor, self.value_id(other))

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Ops are not observed meanwhile."""
        before = self._recorder.muted
        self._recorder.muted = True
        try:
            yield
        finally:
            self._recorder.muted = before
            self._recorder.resume()

    def begin_update(self, *, observe: bool) -> None:
        """An optimizer's step begins on this thread.

        Args:
            observe: watch its ops even at guard level, where its parameters are checked instead.
        """
        self._recorder.phase = int(Phase.OPTIMIZER)
        if not self._full and not observe:
            # Outside the mode the update's many small ops cost nothing at all.
            self._left = self._exit()
            self._recorder.muted = not self._left

    def end_update(self) -> None:
        """The optimizer's step ended."""
        self._recorder.phase = int(Phase.OTHER)
        self._recorder.muted = False
        if self._left:
            self._left = False
            self._enter()

    def forget_modules(self) -> None:
        """A module died: its address may come to mean another."""
        recorder = getattr(self, "_recorder", None)
        if recorder is not None:
            recorder.forget_sites()

    def drain(self) -> None:
        """Report the sinks that were seen."""
        pending, self._pending = self._pending, []
        if pending:
            with self.muted():
                self._sinks.report(pending)

    def drop_sinks(self) -> None:
        """Forget the sinks seen and not reported: a replay has explained them better."""
        self._pending.clear()

    def give_way(self) -> None:
        """A sentinel judges updates from now on: sinks wait until it has."""
        self._patient = True

    def step_failed(self, error: BaseException) -> None:
        """An exception ends the step: a bad value that the program had just tested for is why."""
        tested, self._tested = self._tested, None
        if tested is not None and tested["step"] == self._session.current_step:
            tested["name"] = type(error).__name__
            self._sinks.report([tested])

    def _site(self, name: str) -> int:
        """Return the site of something that the user's current line does."""
        place = user_place()
        site = self._own_sites.get((name, *place))
        if site is None:
            site = self._own_sites[(name, *place)] = self._sites.make(name, *place, None)
        return site

    # The mode

    def _native_recorder(self) -> Any:
        mode = _NativeMode()
        readable = mode.connect(
            describe, classify_code, self._sites.make, self._on_hit, self._on_sink,
            self._on_failure, tensor_kind, torch._C._autograd._get_sequence_nr,
            torch._C._current_autograd_node, torch.Tensor, torch.nn.Parameter,
        )  # fmt: skip
        if not readable:
            return None
        writer = self._session.writer
        header = writer.header_address
        mode.open_ring(
            writer.record_address,
            writer.capacity,
            header + HEADER_HEAD_OFFSET,
            header + HEADER_SEALED_OFFSET,
            0,
            writer.epoch_monotonic_ns,
            writer.mode == "stream",
            writer.on_full == "block",
            writer.op_id_address,
        )
        writer.use_native(mode.reserve, mode.reserve_op_id)
        return mode

    def _enter(self) -> None:
        self._mode.__enter__()
        self._entered.add(threading.current_thread())
        self._recorder.resume()

    def _exit(self) -> bool:
        """Leave the mode if it is the innermost one of this thread; tell whether it was."""
        if _get_current_dispatch_mode() is not self._mode:
            return False
        self._mode.__exit__(None, None, None)
        self._entered.discard(threading.current_thread())
        return True

    # What the recorders tell

    def _on_hit(
        self, op_id: int, flags: int, phase: int, site: int, fwd_op_id: int, tid: int,
        inputs: Pairs, outputs: Pairs,
    ) -> None:  # fmt: skip
        run = OpRun(op_id, flags, phase, site, fwd_op_id, self._records.now_ns(), -1, tid,
                    inputs, outputs)  # fmt: skip
        self._records.op(run)

    def _on_sink(self, kind: str, tensor: torch.Tensor, op_id: int, value_id: int) -> None:
        """A bad value was read or starts a backward: the user may want to stop here.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and it is a failure.
        """
        sink = self._sink(kind, "", tensor, op_id, value_id)
        if kind == "exception":
            self._tested = sink
            return
        self._pending.append(sink)
        if self._session.config.nonfinite != "record" and not self._patient:
            self.drain()
            self._session.explain_pending()

    def _sink(
        self, kind: str, name: str, tensor: torch.Tensor, op_id: int, value_id: int
    ) -> dict[str, Any]:
        return {
            "sink": kind,
            "name": name,
            "step": self._session.current_step,
            "op_id": op_id,
            "value_id": value_id,
            **nonfinite.describe(tensor),
            "t_ns": self._session.writer.now_ns(),
        }

    def _on_failure(self, error: Any) -> bool:
        """Note the recorder's first error; only `NonFiniteError` is meant for the user."""
        if isinstance(error, NonFiniteError):
            return True
        self._note(f"the dispatch handler failed: {type(error).__name__}: {error}")
        return False

    def _note(self, message: str) -> None:
        if not self._noted:
            self._noted = True
            self._session.note("hook_failed", message.splitlines()[0], severity="error")

    def _is_bad(self, tensor: torch.Tensor) -> bool:
        found = stats.native.check(tensor) if stats.HAS_NATIVE else -1
        return bool(found) if found >= 0 else nonfinite.is_nonfinite(tensor)
