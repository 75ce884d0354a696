"""A Keras callback that records the training it is given to."""

from __future__ import annotations

import os
from typing import Any

import keras

from tracelens.training import Training


class TraceCallback(keras.callbacks.Callback):
    """Records `fit`, as ``with tl.trace(...)`` around it would.

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

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begin to record."""
        if not self.training.begin() or self.training.session is None:
            return
        for backend in self.training.session.backends:
            # An exception ends `fit` without a word to its callbacks.
            if hasattr(backend, "adopt"):
                backend.adopt(self.model, self.training.end)
        iterations = self.training.numbers({"iterations": self._optimizer("iterations")})
        self.training.start_at(int(iterations.get("iterations", 0)), marked=False)

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Validation begins."""
        self.training.begin_aside("validation")

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Validation ended."""
        self.training.end_aside()

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
        self.training.end()

    def _optimizer(self, attribute: str) -> Any:
        value = getattr(getattr(self.model, "optimizer", None), attribute, None)
        return value.numpy() if hasattr(value, "numpy") else value
