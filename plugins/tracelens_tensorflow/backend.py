"""TensorFlow's side of a session: sets the hooks, judges what they see, takes them off."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tracelens.discovery import ImportWatcher
from tracelens_tensorflow import (
    checking,
    eagersteps,
    hits,
    marks,
    native,
    reads,
    snapshots,
    tensors,
)
from tracelens_tensorflow.calls import Call
from tracelens_tensorflow.data import DataWatch
from tracelens_tensorflow.doctor import UNSUPPORTED_KERAS, describe, keras_backend
from tracelens_tensorflow.eager import EagerOps
from tracelens_tensorflow.fingerprints import Fingerprints
from tracelens_tensorflow.frontier import Level
from tracelens_tensorflow.functions import Calls
from tracelens_tensorflow.fusion import Opened
from tracelens_tensorflow.keras_hooks import KerasWatch
from tracelens_tensorflow.placement import Placement
from tracelens_tensorflow.recording import Recorder
from tracelens_tensorflow.replay import Replayer
from tracelens_tensorflow.requirements import missing
from tracelens_tensorflow.scaling import ScalingWatch
from tracelens_tensorflow.sentinel import Sentinel
from tracelens_tensorflow.tensorslevel import ValueCapture
from tracelens_tensorflow.twin import Builder, Part
from tracelens_tensorflow.variables import name_variables

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_tensorflow.opslevel import OpsLevel


_KERAS = (
    "keras",
    "tf_keras",
    # Keras imports TensorFlow: where the program imports Keras first, this plugin starts in the
    # middle of that import, and Keras itself comes no more. Its parts do.
    "keras.src.layers.layer",
    "keras.src.optimizers.loss_scale_optimizer",
    "keras.src.backend.tensorflow.trainer",
)


class TensorFlowBackend:
    """Observes TensorFlow. Made and driven by `tracelens.session.Session`."""

    name = "tensorflow"

    def __init__(self) -> None:
        self._uninstall: list[Callable[[], None]] = []
        self._failed: set[str] = set()
        self._session: Session | None = None

    def start(self, session: Session) -> None:
        """Begin to observe.

        Args:
            session: the recording; its writer is open.
        """
        self._session = session
        self._recorder = Recorder(session)
        self._replayer = Replayer(session, self._recorder)
        self._sentinel = Sentinel(session, self._replayer)
        self._placement = Placement(session)
        self._opened = Opened(session)
        self._eager = EagerOps(session, self._recorder, self._sentinel.report)
        self._ops: OpsLevel | None = None
        self._values: ValueCapture | None = None
        if session.config.capture == "tensors":
            self._values = ValueCapture(session, self._recorder.value_id)
            self._install("values", self._values.install)
        self._fingerprints = Fingerprints(session)
        self._active = True
        self._calls = Calls(session, self._builder, self)
        self._data = self._sentinel.data = DataWatch(session, self._recorder)
        self._keras = KerasWatch(session)
        self._scaling = self._sentinel.scaling = ScalingWatch(
            session, self._sentinel.report, lambda: self._keras.in_step
        )
        for part, effect in missing():
            session.note("hook_failed", f"TensorFlow {tf.__version__} has no {part}: {effect}")
        self._install("what graph ops are", _facts_install, session)
        self._install("retraces", _retraces_install, session)
        self._install("devices", self._placement.install)
        self._install("sessions", _sessions_install, session)
        if session.config.profile:
            self._install("profile", _profile_install, session)
        self._install("data", self._data.install)
        self._install("tapes", marks.install, self._tape_asked, self._tape_failed)
        self._install("eager ops", self._eager.install)
        self._install("reads", reads.install, self._read)
        self._install("functions", self._calls.install)
        self._install("variables", snapshots.install, self._replayer.history.dirty)
        self._install("imports", self._watch_imports)
        self._keras_imported()

    def stop(self) -> None:
        """Stop observing and leave TensorFlow as it was found."""
        for uninstall in reversed(self._uninstall):
            try:
                uninstall()
            except Exception as error:
                self._fail("a hook could not be taken off", error)
        self._uninstall.clear()

    def abandon(self) -> None:
        """In a forked child: take the hooks off and write nothing more."""
        self._session = None
        self.stop()

    def renew(self) -> None:
        """A new window begins: what was told before is news again."""
        self._sentinel.renew()

    def begin_step(self, step: int, *, active: bool) -> None:
        """A step begins."""
        self._sentinel.hits = 0
        self._active = active
        _profile_step(step, active=active)
        self._eager.begin_step(active=active)
        if self._ops is not None:
            self._ops.begin_step(step, active=active)
        if self._values is not None:
            self._values.begin_step(step, active=active)

    def after_step(self, step: int) -> None:
        """The step's time is taken: a stretch of profiling can be written."""
        profile = sys.modules.get("tracelens_tensorflow.profile")
        if profile is not None:
            profile.after_step(step)

    def end_step(self, step: int) -> dict[str, Any]:
        """A step ended. Returns its counters, and the scalars that Keras or a session gave."""
        from tracelens_tensorflow import sessions

        with self._eager.muted():
            self._fingerprints.end_step(step)
        hits = self._sentinel.hits + self._eager.take_hits()
        hits += self._ops.hits if self._ops is not None else 0
        counters = {"hits": hits} if hits else {}
        return {**counters, **self._keras.scalars(), **sessions.take_scalars()}

    def step_failed(self, error: BaseException) -> None:
        """An exception of the program leaves the step."""

    def wrap_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what the decorator calls for a step: the calls in it are no steps themselves."""
        return function

    def tap(self, value: Any, name: str) -> bool:
        """Check a tensor under a name."""
        return self._looked_at("tap", value, name)

    def check(self, value: Any, name: str) -> bool:
        """Report a sink if the tensor holds a non-finite value."""
        return self._looked_at("check", value, name)

    def watch(self, module: Any, name: str) -> bool:
        """Name a model's variables."""
        if not isinstance(module, tf.Module) and not hasattr(module, "trainable_variables"):
            return False
        name_variables(module.variables, f"{name}/" if name else "")
        return True

    def fingerprint(self, model: Any, name: str, every: int) -> bool:
        """Compare a model's variables between workers at the end of every so many steps."""
        if not hasattr(model, "trainable_variables"):
            return False
        self._fingerprints.add(model, name, every)
        return True

    def muted(self) -> AbstractContextManager[None]:
        """Return a context in which nothing of the calling thread is observed."""
        return self._eager.muted()

    def adopt(self, model: Any, on_error: Callable[[BaseException], None]) -> None:
        """Watch a Keras model that is being trained already.

        Args:
            model: the model.
            on_error: told of an exception that ends its training.
        """
        self._keras.adopt(model)
        self._keras.on_error = on_error

    def look(self, value: Any) -> dict[str, Any] | None:
        """Return the fields of a tensor's sink if it holds a non-finite value, else none.

        ``None`` if it is not an eager tensor.
        """
        if not _is_eager(value):
            return None
        with self._eager.muted():
            if not tensors.is_bad(value):
                return {}
            return hits.sink_fields("", "", 0, value, self._recorder.value_id(value))

    def number(self, value: Any, name: str) -> float | None:
        """Return a scalar that the user gave to a step; ``None`` if it is not a tensor."""
        if not _is_eager(value) or value.shape.num_elements() != 1:
            return None
        number = float(value.numpy().reshape(()))
        if not math.isfinite(number):
            self._report("loss" if "loss" in name.lower() else "read", value, name)
        return number

    def describe(self) -> dict[str, Any]:
        """Return what `tracelens doctor` shows."""
        return describe(self._session)

    # What the hooks tell

    def before_call(self, call: Call, part: Part) -> None:
        """A function is about to run."""
        with self._eager.muted():
            self._placement.before_call(call)
            self._replayer.before_call(call)

    def run_instead(self, call: Call, part: Part) -> list[Any] | None:
        """Return the outputs of a call that was run in another way; None to let it run."""
        session = self._session
        if session is None or session.config.capture == "guard" or not self._active:
            return None
        with self._eager.muted():
            outputs = self._ops_level(session).run(call)
            if outputs is not None:
                self._opened.tell(call)
            return outputs

    def after_call(self, call: Call, part: Part, flags: Any) -> None:
        """A function ran.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and something is bad.
        """
        session = self._session
        if session is None:
            return
        with self._eager.muted():
            self._placement.after_call(call)
            self._replayer.after_call(call)
            sinks = self._ops.take_sinks() if self._ops is not None else None
            self._data.called(call)
            if sinks is None:
                self._sentinel.judge(call, part, flags)
            else:
                self._sentinel.recorded(call, part, sinks)
        if part.writes and not self._keras.in_step:
            session.auto_step("tensorflow")

    def _tape_asked(self, sinks: list[marks.Sink]) -> None:
        """An eager tape gave gradients."""
        if self._values is not None:
            for tensor, sink, name in sinks:
                self._values.keep(f"{name}.grad" if sink == "gradient" else name, tensor)
        bad = [
            hits.sink_fields(sink, name, self._step(), tensor, self._recorder.value_id(tensor))
            for tensor, sink, name in sinks
            if tensors.is_bad(tensor)
        ]
        if bad and self._session is not None and not self._scaling.hold(bad):
            self._sentinel.report(bad)

    def _tape_failed(self, error: Exception) -> None:
        self._fail("looking at a tape failed", error)

    # Inside

    def _watch_imports(self) -> Callable[[], None]:
        """Keras may be imported later."""
        watcher = ImportWatcher(_KERAS, lambda name: self._keras_imported())
        watcher.install()
        return watcher.remove

    def _keras_imported(self) -> None:
        """Hook what there is of Keras by now."""
        backend = keras_backend() if "keras" in sys.modules else ""
        if UNSUPPORTED_KERAS in backend and self._session is not None:
            self._session.note("keras", f"Keras {backend}", "warning")
        self._install("loss scaling", self._scaling.install)
        self._install("Keras", self._keras.install)
        if self._session is not None:
            in_step = self._keras_in_step
            self._install("optimizers", eagersteps.install, self._session, in_step)

    def _keras_in_step(self) -> bool:
        return bool(self._keras.in_step)

    def _ops_level(self, session: Session) -> OpsLevel:
        """Return what records every op of a call; not before a function is called."""
        from tracelens_tensorflow.opslevel import OpsLevel

        if self._ops is None:
            self._ops = OpsLevel(session, self._recorder, self._may_use_ops)
            self._uninstall.append(self._ops.stop)
            self._ops.by_op.values = self._values
            self._ops.begin_step(session.current_step, active=self._active)
        return self._ops

    def _may_use_ops(self) -> bool:
        engine = self._session.config.engine if self._session is not None else None
        return engine in (None, "native") and _wants_ops()

    def _builder(self) -> Builder:
        """Return what makes twins: not before a function is called.

        Until then the program may still choose TensorFlow's devices and threads, which is no
        longer possible once the ops are loaded.
        """
        use_ops = self._may_use_ops()
        if use_ops:
            self._sentinel.use_ops()
        engine = self._session.config.engine if self._session is not None else None
        level = Level.LEAST if engine == "sentinel" else Level.FRONTIER
        return Builder(checking.sinks_of, level, use_ops)

    def _step(self) -> int:
        return self._session.current_step if self._session is not None else 0

    def _looked_at(self, sink: str, value: Any, name: str) -> bool:
        if isinstance(value, tf.Variable) and tf.executing_eagerly():
            value = value.value()
        if not _is_eager(value):
            if isinstance(value, tf.Tensor):
                # While a function is traced: looked at each time it runs.
                marks.mark(value, sink, name)
            return isinstance(value, tf.Tensor | tf.Variable)
        if self._values is not None and sink == "tap":
            self._values.keep(name, value)
        if tensors.is_bad(value):
            self._report(sink, value, name)
        return True

    def _read(self, value: Any) -> None:
        """The program reads a bad scalar.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and an op made it so.
        """
        # What no recorded op made was told where it came in, or where a call returned it.
        if self._session is None or self._recorder.value_id(value) < 0:
            return
        self._report("read", value, "")
        if self._session.config.nonfinite != "record":
            self._session.explain_pending()

    def _report(self, sink: str, value: Any, name: str) -> None:
        value_id = self._recorder.value_id(value)
        self._sentinel.report([hits.sink_fields(sink, name, self._step(), value, value_id)])

    def _install(self, what: str, install: Callable[..., Callable[[], None]], *args: Any) -> None:
        try:
            self._uninstall.append(install(*args))
        except Exception as error:
            self._fail(f"{what} cannot be observed", error)

    def _fail(self, what: str, error: Exception) -> None:
        message = f"{what}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        if message not in self._failed and self._session is not None:
            self._failed.add(message)
            self._session.note("hook_failed", message, "error")


def _wants_ops() -> bool:
    """Tell whether to use the compiled ops: on the CPU, where they exist or can be made."""
    # On a GPU every check would copy its tensor to the host.
    return not tf.config.list_logical_devices("GPU") and native.available()


def _facts_install(session: Session) -> Callable[[], None]:
    from tracelens_tensorflow import facts

    return facts.install(session)


def _retraces_install(session: Session) -> Callable[[], None]:
    from tracelens_tensorflow import retraces

    return retraces.install(session)


def _profile_install(session: Session) -> Callable[[], None]:
    from tracelens_tensorflow import profile

    return profile.install(session)


def _profile_step(step: int, *, active: bool) -> None:
    profile = sys.modules.get("tracelens_tensorflow.profile")
    if profile is not None:
        profile.begin_step(step, active=active)


def _sessions_install(session: Session) -> Callable[[], None]:
    from tracelens_tensorflow import sessions

    return sessions.install(session)


def _is_eager(value: Any) -> bool:
    return hasattr(value, "_numpy") and hasattr(value, "_datatype_enum")
