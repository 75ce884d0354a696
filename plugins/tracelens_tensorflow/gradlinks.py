"""Which forward op a backward op belongs to.

TensorFlow runs a gradient function for each forward op. The places that call one are wrapped while
graphs are traced, and what a call makes is noted as a span of op numbers.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tracelens_tensorflow import spans


def forward_of(op: Any) -> tf.Operation | None:
    """Return the forward op of a backward op, ``None`` if it is unknown.

    Args:
        op: a ``tf.Operation``; the answer may be in another graph.
    """
    notes = spans.known_notes(op.graph)
    if notes is not None:
        found = notes.singles.get(op._id) or notes.owner("gradients", op._id) or notes.forward
        if found is not None:
            return found()
    return None
