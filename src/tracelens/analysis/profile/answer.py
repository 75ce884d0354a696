"""What every analysis returns: a frozen dataclass that turns into JSON by itself."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


class Answer:
    """Base of the results of analyses."""

    __slots__ = ()

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; arrays become lists."""
        plain: dict[str, Any] = _plain(self)
        return plain


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value
