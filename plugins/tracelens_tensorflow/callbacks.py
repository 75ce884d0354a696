"""A Keras callback that records the training it is given to."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Iterator
from typing import Any

import keras

from tracelens.training import Training, end_with

_METHODS = ("fit", "evaluate", "predict")
_recorded: weakref.WeakKeyDictionary[Any, TraceCallback] = weakref.WeakKeyDictionary()
"""The callback that records a model's training: Keras tells callbacks of no exception."""


class TraceCallback(keras.callbacks.Callback):
    """Records `fit`, `evaluate` or `predict`, as ``with tl.trace(...)`` around it would.

    A batch is a step, numbered as the optimizer's ``iterations``, so that a training which goes on
    from a checkpoint goes on counting. Its loss and metrics are the step's scalars; validation
    metrics and the learning rate are those of an epoch's last step. Validation is told apart from
    the steps. In a session that is open already it opens none: that one records.

    Args:
        path: the trace directory, which must not exist yet; a second `fit` with the same callback
            is recorded beside it.
        **settings: those of `tracelens.trace`: ``capture``, ``nonfinite``, ...

    Raises:
        ConfigError: a setting has a value that is not allowed.

    Examples:
        >>> from tracelens_tensorflow import TraceCallback
        >>> callback = TraceCallback("run.tltrace", nonfinite="raise")
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        super().__init__()
        self.training = Training(path, **settings)
        self._within = ""
        for method in _METHODS:
            end_with(keras.Model, method, functools.partial(_recordings, method))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begin to record."""
        if not self._begin("fit"):
            return
        iterations = self.training.numbers({"iterations": self._optimizer("iterations")})
        self.training.start_at(int(iterations.get("iterations", 0)), marked=False)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Validation begins, or an `evaluate` outside of a training."""
        if self._within:
            self.training.begin_aside("validation")
        else:
            self._begin("evaluate")

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Validation ended, or an `evaluate` outside of a training."""
        if self._within == "evaluate":
            self._end()
        else:
            self.training.end_aside()

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """A `predict` begins."""
        if not self._within:
            self._begin("predict")

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """A `predict` ended."""
        if self._within == "predict":
            self._end()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Metrics of validation, and the learning rate, are scalars of the epoch's last step."""
        validation = {name: v for name, v in (logs or {}).items() if name.startswith("val_")}
        rate = {"learning_rate": self._optimizer("learning_rate")}
        self.training.late(self.training.numbers({**validation, **rate}))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """End the recording.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and the last step was bad.
        """
        self._end()

    def _begin(self, method: str) -> bool:
        """Begin to record; False if nothing is to be recorded or it has begun before."""
        self._within = method
        if not self.training.begin() or self.training.session is None:
            return False
        _recorded[self.model] = self
        for backend in self.training.session.backends:
            if hasattr(backend, "adopt"):
                backend.adopt(self.model, self.training.end)
        return True

    def _end(self) -> None:
        self._within = ""
        self.training.end()

    def _optimizer(self, attribute: str) -> Any:
        value = getattr(getattr(self.model, "optimizer", None), attribute, None)
        return value.numpy() if hasattr(value, "numpy") else value


def _recordings(method: str, model: Any) -> Iterator[Training]:
    """Yield what records a method of a model that an exception is leaving."""
    callback = _recorded.get(model)
    if callback is not None and callback._within == method:
        callback._within = ""
        yield callback.training
