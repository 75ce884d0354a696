"""What `tracelens doctor` says of TensorFlow."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tracelens_tensorflow import native
from tracelens_tensorflow.requirements import missing

if TYPE_CHECKING:
    from tracelens.session import Session


def describe(session: Session | None) -> dict[str, Any]:
    """Return the engine in use (or that would be), why, and how to get a better one.

    The compiled ops are built if they are not yet, so that the answer is true.

    Args:
        session: the recording that uses the backend, None if none does.
    """
    facts: dict[str, Any] = {
        "framework": "tensorflow",
        "version": tf.__version__,
        "keras": keras_backend() or "not found",
        "devices": [device.name for device in tf.config.list_physical_devices()],
    }
    absent = missing()
    if absent:
        facts["not_observed"] = [f"{name}: {effect}" for name, effect in absent]
    reason = native.why_not()
    if tf.config.list_physical_devices("GPU"):
        return {
            **facts,
            "engine": "python",
            "why": "a GPU is present: checks are made of TensorFlow's own ops, on the device",
            "fix": "",
        }
    if reason:
        return {
            **facts,
            "engine": "python",
            "why": f"checks are made of TensorFlow's own ops: {reason}",
            "fix": "install a C++ compiler (g++ or clang++), then run `tracelens doctor` again",
        }
    why = "the compiled check op loads into this TensorFlow"
    if session is not None:
        why += "; in use by the running session"
    return {**facts, "engine": "native", "why": why, "fix": ""}


def keras_backend() -> str:
    """Return Keras' version and backend, and what that means; empty if there is no Keras."""
    keras = sys.modules.get("keras")
    version = getattr(keras, "__version__", "")
    if not version:
        from importlib import metadata

        try:
            version = metadata.version("keras")
        except metadata.PackageNotFoundError:
            return ""
    config = getattr(keras, "config", None)
    backend = config.backend() if config else os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend == "tensorflow":
        return f"{version} on tensorflow"
    if backend == "torch":
        return f"{version} on torch: the PyTorch plugin records it"
    return f"{version} on {backend}: {UNSUPPORTED_KERAS}"


UNSUPPORTED_KERAS = (
    "not recorded, for there is no plugin for it; set KERAS_BACKEND=tensorflow or torch before "
    "Keras is imported"
)
