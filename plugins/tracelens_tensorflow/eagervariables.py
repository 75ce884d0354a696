"""Which variable an eager handle belongs to: asked only when one went bad."""

from __future__ import annotations

import gc
from typing import Any

from tensorflow.python.ops import resource_variable_ops

from tracelens_tensorflow.variables import name_of

_names: dict[int, str] = {}


def name_of_handle(handle: Any) -> str:
    """Return the name of the variable that a handle refers to.

    Args:
        handle: an eager tensor of dtype resource.

    Returns:
        Empty for a variable that is only being made: it gets its initial value.
    """
    known = _names.get(handle._id, "")
    if not known and (known := _search(handle)):
        _names[handle._id] = known
    return known


def _search(handle: Any) -> str:
    # Variables are not registered anywhere; there are few enough objects to look at all, once.
    for candidate in gc.get_objects():
        if (
            isinstance(candidate, resource_variable_ops.BaseResourceVariable)
            and getattr(candidate, "_handle", None) is handle
        ):
            return name_of(candidate)
    return ""
