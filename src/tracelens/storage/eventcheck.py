"""Events come from a file that anyone may have written: each known key has its type, or is gone."""

from __future__ import annotations

from typing import Any

_INTS = frozenset({
    "step", "op_id", "value_id", "t_ns", "start_ns", "duration_ns", "n_ops", "hits", "batch_index",
    "batch_size",
})  # fmt: skip
_TEXTS = frozenset({
    "sink", "name", "kind", "severity", "message", "dtype", "loader", "rule", "during", "request",
})  # fmt: skip
_OBJECTS = frozenset({"stats", "scalars"})
_LISTS = frozenset({"shape", "first_bad", "sample_indices"})


def clean_event(event: dict[str, Any]) -> dict[str, Any]:
    """Remove known keys whose value has another type than the format's, in place.

    Returns:
        The event; keys that this version does not know are left as they are.
    """
    finding = event.get("t") == "finding"
    for key in [key for key, value in event.items() if not _fits(key, value, finding=finding)]:
        del event[key]
    return event


def _fits(key: str, value: Any, *, finding: bool) -> bool:
    if value is None:
        return True
    if finding and key == "sink":
        return isinstance(value, dict)  # a finding tells the whole sink, not only its kind
    if key in _INTS:
        return type(value) is int and -(1 << 63) <= value < 1 << 63
    if key in _TEXTS:
        return isinstance(value, str)
    if key in _OBJECTS:
        return isinstance(value, dict)
    if key in _LISTS:
        return isinstance(value, list) and all(type(item) is int for item in value)
    return True
