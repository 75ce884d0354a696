"""Scalars that the program reads off eager tensors: `float(loss)`, `loss.numpy()`, an f-string.

What a program reads it acts upon, so a non-finite scalar that an op made and the program reads
is a sink, as `item()` is in PyTorch. Arrays are not looked at: programs read masks too.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from tensorflow.python.framework import ops as framework_ops

from tracelens.frames import is_users
from tracelens_tensorflow import tensors

_READERS = ("numpy", "__float__", "__format__")


def install(on_bad: Callable[[Any], None]) -> Callable[[], None]:
    """Begin to watch; the result, called, ends it.

    Args:
        on_bad: told of each non-finite scalar that code of the user's reads. What it raises
            reaches the line that reads.
    """
    base = framework_ops._EagerTensorBase
    originals = {name: vars(base)[name] for name in _READERS}
    wrappers = {name: _wrapped(original, on_bad) for name, original in originals.items()}
    for name, wrapper in wrappers.items():
        setattr(base, name, wrapper)

    def uninstall() -> None:
        for name, original in originals.items():
            if vars(base).get(name) is wrappers[name]:
                setattr(base, name, original)

    return uninstall


def _wrapped(original: Any, on_bad: Callable[[Any], None]) -> Any:
    @functools.wraps(original)
    def read(self: Any, *args: Any) -> Any:
        value = original(self, *args)
        # Frameworks read scalars for their own ends; what they find out is judged elsewhere.
        if not self.shape.rank and tensors.is_bad(self) and is_users(sys._getframe(1)):
            on_bad(self)
        return value

    return read
