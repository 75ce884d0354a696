"""A guard for models that serve: names the request and the op of an answer that is not finite.

Examples:
    >>> import tracelens as tl
    >>> from tracelens.serving import request
    >>> guarded = tl.guard(lambda x: [x, x * float("inf")], name="scorer", nonfinite=print)
"""

from __future__ import annotations

import functools
import inspect
import os
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from tracelens.config import enabled
from tracelens.errors import ConfigError, NonFiniteWarning
from tracelens.serving_answers import answers, raise_for
from tracelens.serving_answers import collecting as _collecting
from tracelens.serving_requests import (
    AsgiMiddleware,
    WsgiMiddleware,
    current_request,
    django_middleware,
    request,
)

__all__ = [
    "AsgiMiddleware",
    "WsgiMiddleware",
    "current_request",
    "django_middleware",
    "guard",
    "request",
]

Model = TypeVar("Model")
Policy = str | Callable[[dict[str, Any]], object]

ANSWERING = ("predict", "predict_on_batch", "predict_proba", "decision_function", "generate")
"""Methods whose results are answers too, beside a call of the model itself."""


def guard(
    model: Model,
    /,
    *,
    name: str | None = None,
    nonfinite: Policy = "record",
    methods: tuple[str, ...] = ANSWERING,
    path: str | os.PathLike[str] | None = None,
) -> Model:
    """Return an object that behaves as the model and looks at each of its answers.

    An answer (tensors, arrays and floats, nested or not) that holds a NaN or an Inf becomes a
    finding with the op that made it, the line of the model's code, and the request that it was
    for (see `request` and the middleware). The same cause is told once, with a count. It records
    into the open session, or into one of its own. With ``TRACELENS=0`` the model itself is
    returned. Calls from many threads may overlap.

    Args:
        model: a torch module, a Keras model, a callable of a SavedModel, or any function.
        name: what to call it; its class or function by default.
        nonfinite: ``"record"`` the finding, ``"warn"`` of it, ``"raise"`` instead of answering,
            or a function that is called with it.
        methods: further methods whose results are answers.
        path: the trace, where a session is to be opened; a name that is free is made of it.

    Raises:
        ConfigError: an argument has a value that is not allowed.

    Examples:
        >>> import tracelens as tl
        >>> double = tl.guard(lambda x: 2 * x, name="double")
        >>> double(1.5)
        3.0
    """
    if not callable(model):
        raise ConfigError(f"tl.guard: a {type(model).__name__} cannot be called")
    if nonfinite not in ("record", "warn", "raise") and not callable(nonfinite):
        raise ConfigError(
            f"tl.guard: nonfinite= must be record, warn, raise or a function, not {nonfinite!r}"
        )
    if not enabled():
        return model
    return cast(Model, Guard(_name_of(model, name), nonfinite, methods, path).around(model))


class Guard:
    """How the answers of one model are looked at.

    Args:
        name: the model's name.
        policy: what to do with a bad answer.
        methods: methods whose results are answers.
        path: the trace, where a session is to be opened.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        methods: tuple[str, ...],
        path: str | os.PathLike[str] | None,
    ) -> None:
        self.name = name
        self.methods = methods
        self._policy = policy
        self._path = path

    def around(self, model: Any) -> Any:
        """Return what stands for a model: a function for a function, a stand-in for an object."""
        if isinstance(model, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
            return self.function(model)
        return _stand_in(model, self)

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose results are looked at."""
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def answer_async(*args: Any, **kwargs: Any) -> Any:
                session = answers.session(self._path)
                if session is not None:
                    answers.begin(session)
                try:
                    result = await function(*args, **kwargs)
                finally:
                    if session is not None:
                        answers.done()
                self._judge(session, result, [])
                return result

            return answer_async

        @functools.wraps(function)
        def answer(*args: Any, **kwargs: Any) -> Any:
            return self.call(function, args, kwargs)

        return answer

    def call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a function and look at its result.

        Raises:
            NonFiniteError: the policy is ``"raise"`` and the result is not finite.
        """
        session = answers.session(self._path)
        if session is None:
            result = function(*args, **kwargs)
            self._judge(None, result, [])
            return result
        answers.begin(session)
        try:
            with _collecting() as reported:
                result = function(*args, **kwargs)
        finally:
            answers.done()
        self._judge(session, result, reported)
        return result

    def _judge(self, session: Any, result: Any, reported: list[dict[str, Any]]) -> None:
        sinks = answers.find(session, self.name, result)
        if not sinks:
            for sink in reported:  # what the model itself looked at: no answer, told as ever
                session.judge.add(sink)
            return
        if reported and sinks[0]["value_id"] < 0:
            # The answer was copied out of its framework; what the backend saw has a history.
            for key in ("value_id", "op_id"):
                sinks[0][key] = reported[0].get(key, -1)
        finding, new = answers.explain(session, sinks)
        policy = self._policy
        if callable(policy):
            policy(finding)
        elif policy == "raise":
            raise_for(finding)
        elif policy == "warn" and new:
            from tracelens.judge import one_line

            warnings.warn(one_line(finding), NonFiniteWarning, stacklevel=4)


class _StandIn:
    """Stands for a model: everything but its answers is the model's own.

    It counts as an instance of the model's class. A method that returns the model (``eval``,
    ``to``) returns the stand-in.
    """

    __slots__ = ("__weakref__", "_tracelens_guard", "_tracelens_model")

    def __init__(self, model: Any, guard: Guard) -> None:
        object.__setattr__(self, "_tracelens_model", model)
        object.__setattr__(self, "_tracelens_guard", guard)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(object.__getattribute__(self, "_tracelens_model"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracelens_guard.call(self._tracelens_model, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        model, guard = self._tracelens_model, self._tracelens_guard
        value = getattr(model, name)
        if name in guard.methods and callable(value):
            return guard.function(value)
        if name == "signatures" and isinstance(value, Mapping):
            return {key: guard.around(function) for key, function in value.items()}
        if isinstance(value, types.MethodType) and value.__self__ is model:
            return self._returning_self(value)
        return value

    def _returning_self(self, method: types.MethodType) -> Callable[..., Any]:
        model = self._tracelens_model

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self if result is model else result

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._tracelens_model, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._tracelens_model, name)

    def __dir__(self) -> list[str]:
        return dir(self._tracelens_model)

    def __repr__(self) -> str:
        return repr(self._tracelens_model)

    def __reduce__(self) -> tuple[Any, ...]:
        # What is saved or sent elsewhere is the model, without its guard.
        return _same, (self._tracelens_model,)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()


_PASSED_ON = ("__len__", "__iter__", "__getitem__", "__contains__", "__enter__", "__exit__")


def _stand_in(model: Any, guard: Guard) -> Any:
    """Return a stand-in with those special methods that the model's class has."""
    passed_on = {name: _passed_on(name) for name in _PASSED_ON if hasattr(type(model), name)}
    kind = type("Guarded", (_StandIn,), {"__slots__": (), **passed_on})
    return kind(model, guard)


def _passed_on(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any) -> Any:
        return getattr(self._tracelens_model, name)(*args)

    return call


def _same(model: Any) -> Any:
    return model


def _name_of(model: Any, name: str | None) -> str:
    if name is not None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"tl.guard: the name must be a non-empty string, not {name!r}")
        return name
    own = getattr(model, "__qualname__", None) or type(model).__name__
    return str(own)
