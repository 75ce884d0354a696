"""Runs the twins of the functions that the program calls, and hands every call on.

One method of TensorFlow is wrapped: ``AtomicFunction.call_flat``, through which each call of a
``tf.function`` goes, that of Keras and those restored from a SavedModel included. Only calls
from eager code are looked at: what they call is part of their twins.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tensorflow.python.eager.polymorphic_function import atomic_function

from tracelens.errors import NonFiniteError
from tracelens_tensorflow.calls import Call
from tracelens_tensorflow.fdef import PREFIX
from tracelens_tensorflow.staging import take
from tracelens_tensorflow.twin import CHECK_OP, Builder, Part

if TYPE_CHECKING:
    from tracelens.session import Session

_AtomicFunction = atomic_function.AtomicFunction
_PART = "_tracelens_part"
_NOBODY: tuple[Any, Any] = (None, None)


class Listener(Protocol):
    """Told of the program's calls; an error of its own is noted and the program goes on."""

    def before_call(self, call: Call, part: Part) -> None:
        """A function is about to run."""

    def after_call(self, call: Call, part: Part, flags: Any) -> None:
        """It ran; ``flags`` is its vector of sums, if it has one.

        Raises:
            NonFiniteError: the program is to be told.
        """

    def run_instead(self, call: Call, part: Part) -> list[Any] | None:
        """Return the outputs of the call, having run it in another way; None to let it run."""


class _Here(threading.local):
    depth = 0


class Calls:
    """The wrapping of calls for one session.

    Args:
        session: the recording.
        make_builder: makes what makes the twins, when the first is needed.
        listener: told of the calls.
    """

    def __init__(
        self, session: Session, make_builder: Callable[[], Builder], listener: Listener
    ) -> None:
        self._session = session
        self._make_builder = make_builder
        self._builder: Builder | None = None
        self._listener = listener
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._here = _Here()
        self._failed: set[str] = set()
        self._lock = threading.RLock()
        self._original: Any = None

    def install(self) -> Callable[[], None]:
        """Begin to look at calls; the result, called, ends it."""
        original = self._original = _AtomicFunction.call_flat

        def call_flat(function: Any, *args: Any) -> Any:
            if (
                self._original is None
                or self._here.depth
                or not function._bound_context.executing_eagerly()
            ):
                return original(function, *args)
            return self._call(function, args)

        call_flat.__doc__ = original.__doc__
        _AtomicFunction.call_flat = call_flat

        def uninstall() -> None:
            self._original = None
            for function in list(self._seen):
                function.__dict__.pop(_PART, None)
            if _AtomicFunction.call_flat is call_flat:
                _AtomicFunction.call_flat = original

        return uninstall

    def _call(self, function: Any, args: Any) -> Any:
        original = self._original
        owner, part = function.__dict__.get(_PART, _NOBODY)
        if owner is not self:
            part = self._built(function)
        call = Call(function, list(args), self._session.current_step, part.writes)
        if not self._told("before_call", call, part):
            return original(function, *args)
        self._here.depth += 1
        try:
            outputs, flags = self._run(call, part)
        finally:
            self._here.depth -= 1
        call.result = outputs
        self._told("after_call", call, part, flags)
        return outputs

    def _run(self, call: Call, part: Part) -> tuple[Any, Any]:
        # Guards itself: what it raises is an error of the program's own ops.
        instead = self._listener.run_instead(call, part)
        if instead is not None:
            return instead, None
        twin = part.function
        if twin is None:
            call.again = partial(self._original, call.function, *call.args)
            return call.again(), None
        count = len(call.function.function_type.flat_outputs)
        call.again = partial(twin.run, call.args, count + bool(part.vector) + len(part.kept))
        try:
            outputs = call.again()
        except Exception as error:
            for area in part.staged:
                take(area)
            if not _is_ours(error):
                raise
            # Nothing has run: the runtime found no way to run the twin.
            self._fail(f"{call.name} could not be checked: {_first_line(error)}")
            part.function = None
            part.vector.clear()
            part.kept.clear()
            part.staged.clear()
            call.again = None
            return self._original(call.function, *call.args), None
        flags = outputs[count] if part.vector else None
        for area in part.staged:
            call.kept[area.op] = take(area)
        if part.kept:
            _keep(call, part, outputs[count + bool(part.vector) :])
        return outputs[:count], flags

    def _built(self, function: Any) -> Part:
        with self._lock:
            owner, part = function.__dict__.get(_PART, _NOBODY)
            if owner is not self:
                try:
                    if self._builder is None:
                        self._builder = self._make_builder()
                    part = self._builder.build(function)
                except Exception as error:
                    self._fail(f"{function.name.decode()} could not be checked: {error!r}")
                    part = Part(function, False)
                setattr(function, _PART, (self, part))
                self._seen.add(function)
            return part

    def _told(self, method: str, *args: Any) -> bool:
        try:
            getattr(self._listener, method)(*args)
        except NonFiniteError:
            raise
        except Exception as error:
            self._fail(f"{method} failed: {type(error).__name__}: {_first_line(error)}")
            return False
        return True

    def _fail(self, message: str) -> None:
        if message not in self._failed:
            self._failed.add(message)
            self._session.note("hook_failed", message, "error")


def _keep(call: Call, part: Part, values: list[Any]) -> None:
    """Sort what the twin returned for a replay by op and by run of the op."""
    at = 0
    while at < len(values):
        op = part.kept[at][0]
        n = len(op.outputs)
        call.kept.setdefault(op, []).append(values[at : at + n])
        at += n


def _is_ours(error: Exception) -> bool:
    """Tell whether an error is about the twin's own nodes, not about what the program does."""
    text = str(error)
    return CHECK_OP in text or f"node {PREFIX}" in text


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
