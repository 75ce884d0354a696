"""Keras on TensorFlow: a batch of ``fit`` is a step, its losses and metrics are the step's scalars.

Keras makes one Python function per model and kind of work and calls it for every batch. The
function for training is wrapped when a model hands it out. Its results are read where the step
is written down, not when they are made, so nothing waits for them.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tracelens.errors import NonFiniteError
from tracelens_tensorflow.variables import name_variables

if TYPE_CHECKING:
    from tracelens.session import Session

_MAKERS = ("make_train_function", "make_test_function", "make_predict_function")
_WRAPPED = "_tracelens_original"


class Scalar:
    """A one-element tensor that is read when its number is asked for."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __float__(self) -> float:
        return float(self._tensor.numpy())


class KerasWatch:
    """The wrapping of Keras for one session.

    Args:
        session: the recording.

    Attributes:
        in_step: a batch is being trained on, so updates in it are no steps of their own.
        on_error: told of an exception that ends training.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._models: weakref.WeakSet[Any] = weakref.WeakSet()
        self._scalars: dict[str, Any] = {}
        self._originals: dict[str, Any] = {}
        self._trainer: Any = None
        self._failed = False
        self.in_step = False
        self.on_error: Callable[[BaseException], None] | None = None

    def install(self) -> Callable[[], None]:
        """Begin to watch; the result, called, ends it."""
        trainer = sys.modules.get("keras.src.backend.tensorflow.trainer")
        if trainer is not None and self._trainer is None:
            self._wrap(trainer.TensorFlowTrainer)
        return self.uninstall

    def uninstall(self) -> None:
        """Leave Keras and the models as they were found."""
        if self._trainer is not None:
            for name, original in self._originals.items():
                setattr(self._trainer, name, original)
            self._trainer = None
        for model in list(self._models):
            original = getattr(model.train_function, _WRAPPED, None)
            if original is not None:
                model.train_function = original

    def adopt(self, model: Any) -> None:
        """Watch a model that has made its functions already."""
        try:
            self._adopt(model)
        except Exception as error:
            self._fail(error)

    def scalars(self) -> dict[str, Any]:
        """Return the losses and metrics of the step that ends."""
        scalars, self._scalars = self._scalars, {}
        return scalars

    def _wrap(self, trainer: Any) -> None:
        self._trainer = trainer
        for name in _MAKERS:
            original = self._originals[name] = getattr(trainer, name)

            @functools.wraps(original)
            def make(model: Any, *args: Any, __make: Any = original, **kwargs: Any) -> Any:
                made = __make(model, *args, **kwargs)
                self.adopt(model)
                return made

            setattr(trainer, name, make)

    def _adopt(self, model: Any) -> None:
        name_variables(model.variables)
        optimizer = getattr(model, "optimizer", None)
        if optimizer is not None:
            name_variables(optimizer.variables)
        function = model.train_function
        if function is None or hasattr(function, _WRAPPED):
            return
        self._models.add(model)

        @functools.wraps(function)
        def train(iterator: Any) -> Any:
            if self._trainer is None:
                return function(iterator)
            self.in_step = True
            try:
                logs = function(iterator)
                self.in_step = False
                self._trained(logs)
            except StopIteration:
                raise
            except BaseException as error:
                if self.on_error is not None:
                    self.on_error(error)
                raise
            finally:
                self.in_step = False
            return logs

        setattr(train, _WRAPPED, function)
        model.train_function = train

    def _trained(self, logs: Any) -> None:
        try:
            self._scalars = dict(_scalars_in(logs))
            self._session.auto_step("tensorflow")
        except NonFiniteError:
            raise
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            line = (str(error).splitlines() or [""])[0][:200]
            message = f"watching Keras failed: {type(error).__name__}: {line}"
            self._session.note("hook_failed", message, "error")


def _scalars_in(logs: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the one-element tensors of (nested) logs with their names."""
    found: list[tuple[str, Any]] = []
    for name, value in logs.items() if isinstance(logs, dict) else ():
        if isinstance(value, dict):
            found += _scalars_in(value, f"{prefix}{name}.")
        elif isinstance(value, tf.Tensor) and value.shape.rank == 0:
            found.append((f"{prefix}{name}", Scalar(value)))
        elif isinstance(value, int | float):
            found.append((f"{prefix}{name}", float(value)))
    return found
