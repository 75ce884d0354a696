"""A Keras callback that records the training it is given to."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

import keras

from tracelens import api
from tracelens import session as sessions
from tracelens.errors import NonFiniteError


class TraceCallback(keras.callbacks.Callback):
    """Records `fit`, as ``with tl.trace(...)`` around it would.

    In a session that is open already it does nothing: that one records the training.

    Args:
        path: the trace directory, which must not exist yet.
        **settings: those of `tracelens.trace`: ``capture``, ``nonfinite``, ...

    Raises:
        ConfigError: a setting has a value that is not allowed.

    Examples:
        >>> from tracelens_tensorflow import TraceCallback
        >>> callback = TraceCallback("run.tltrace", nonfinite="raise")
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        super().__init__()
        self._tracer = api.trace(path, **settings)
        self._open = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begin to record."""
        if sessions.current() is not None or self._open:
            return
        self._tracer.__enter__()
        self._open = True
        # An exception ends `fit` without a word to its callbacks.
        atexit.register(self._close)
        for backend in sessions.current().backends:  # type: ignore[union-attr]
            if hasattr(backend, "adopt"):
                backend.adopt(self.model, self._end)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """End the recording.

        Raises:
            NonFiniteError: ``nonfinite="raise"`` and the last step was bad.
        """
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if self._open:
            self._open = False
            atexit.unregister(self._close)
            self._tracer.__exit__(type(error) if error else None, error, None)

    def _close(self) -> None:
        try:
            self.on_train_end()
        except NonFiniteError as error:
            sys.stderr.write(f"tracelens: {error}\n")
