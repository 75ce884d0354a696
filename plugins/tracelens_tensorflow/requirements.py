"""The parts of TensorFlow and Keras that are no public API and that this plugin needs.

They are asked for before they are used: where one is missing, that part is not observed, and
`tracelens doctor` and a note in the trace say which.
"""

from __future__ import annotations

import importlib

_NEEDED = (
    (
        "tensorflow.python.eager.polymorphic_function.atomic_function",
        ("AtomicFunction.call_flat", "InterpolateRuntimeError"),
        "calls of tf.function are not checked",
    ),
    (
        "tensorflow.python.eager.polymorphic_function.tracing_compilation",
        ("_create_concrete_function",),
        "retraces are not told",
    ),
    (
        "tensorflow.python.eager.backprop",
        ("GradientTape.gradient", "_gradient_function"),
        "losses and gradients are not named",
    ),
    (
        "tensorflow.python.pywrap_tfe",
        ("TFE_Py_FastPathExecute", "TFE_Py_Execute"),
        "eager ops are not recorded and nothing is replayed",
    ),
    ("tensorflow.python.eager.execute", ("execute",), "eager ops are not recorded"),
    (
        "tensorflow.python.client.session",
        ("BaseSession._do_run",),
        "TF1 sessions are not checked",
    ),
)


def missing() -> list[tuple[str, str]]:
    """Return what this TensorFlow does not have: its name, and what is not observed for it."""
    absent = []
    for module, names, effect in _NEEDED:
        try:
            found = importlib.import_module(module)
        except ImportError:
            absent.append((module, effect))
            continue
        for name in names:
            owner: object | None = found
            for part in name.split("."):
                owner = getattr(owner, part, None)
            if owner is None:
                absent.append((f"{module}.{name}", effect))
    return absent
