"""TraceLens for TensorFlow: eager, `tf.function`, Keras and TF1 sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens_tensorflow.again import retrace
    from tracelens_tensorflow.callbacks import TraceCallback

__all__ = ["TraceCallback", "retrace"]


def __getattr__(name: str) -> Any:
    if name == "TraceCallback":
        from tracelens_tensorflow.callbacks import TraceCallback

        return TraceCallback
    if name == "retrace":
        from tracelens_tensorflow.again import retrace

        return retrace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
