"""Says in words how the arguments of one trace of a function differ from those of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

_TEXT = 60


@dataclass(frozen=True, slots=True)
class Change:
    """One argument that differs.

    Attributes:
        kind: ``"shape"``, ``"dtype"``, ``"value"``, ``"object"``, ``"structure"`` or ``"type"``.
        name: the argument, with the way to the part that differs (``"batch['x'][0]"``).
        was: what it was, in words.
        now: what it is.
        spec: for a tensor whose shape changed: the ``tf.TensorSpec`` that takes both.
    """

    kind: str
    name: str
    was: str
    now: str
    spec: str = ""

    @property
    def sentence(self) -> str:
        """The change in words, without a full stop."""
        if self.kind in ("shape", "dtype"):
            return f"{self.kind} of argument {self.name} is {self.now}, was {self.was}"
        if self.kind == "value":
            return f"Python value of argument {self.name} is {self.now}, was {self.was}"
        if self.kind == "object":
            return f"argument {self.name} is another object: {self.now}, was {self.was}"
        return f"argument {self.name} is {self.now}, was {self.was}"


def changes(new: Any, old: Any) -> list[Change]:
    """Return what differs between two signatures of one function.

    Args:
        new: a ``FunctionType``.
        old: another.
    """
    found: list[Change] = []
    before, after = _parameters(old), _parameters(new)
    for name, now in after.items():
        if name in before:
            found += _compare(name, before[name], now)
        else:
            found.append(Change("structure", name, "absent", _words(now)))
    found += [
        Change("structure", name, _words(was), "absent")
        for name, was in before.items()
        if name not in after
    ]
    return found


def weight(found: list[Change]) -> int:
    """Return how far two signatures are apart: another structure counts more than other sizes."""
    return sum(8 if change.kind in ("structure", "type") else 1 for change in found)


def _parameters(function_type: Any) -> dict[str, Any]:
    return {name: parameter.type_constraint for name, parameter in function_type.parameters.items()}


def _compare(name: str, was: Any, now: Any) -> Iterator[Change]:
    if was == now:
        return
    parts_was, parts_now = _parts(was), _parts(now)
    if parts_was is not None and parts_now is not None and type(was) is type(now):
        if list(parts_was) == list(parts_now):
            for key, part in parts_now.items():
                yield from _compare(f"{name}{key}", parts_was[key], part)
            return
        yield Change("structure", name, _count(was, parts_was), _count(now, parts_now))
        return
    if isinstance(was, tf.TensorSpec) and isinstance(now, tf.TensorSpec):
        yield from _compare_tensors(name, was, now)
        return
    kinds = {"Literal": "value", "Weakref": "object"}
    kind = kinds.get(type(now).__name__, "type") if type(was) is type(now) else "type"
    yield Change(kind, name, _words(was), _words(now))


def _compare_tensors(name: str, was: tf.TensorSpec, now: tf.TensorSpec) -> Iterator[Change]:
    if was.dtype != now.dtype:
        yield Change("dtype", name, was.dtype.name, now.dtype.name)
    if was.shape != now.shape:
        yield Change("shape", name, str(was.shape), str(now.shape), _common(was, now))


def _common(was: tf.TensorSpec, now: tf.TensorSpec) -> str:
    """Return the source text of the narrowest spec that takes both shapes."""
    shape = was.shape.most_specific_compatible_shape(now.shape)
    sizes = None if shape.rank is None else [None if d is None else int(d) for d in shape.as_list()]
    return f"tf.TensorSpec({sizes}, tf.{now.dtype.name})"


def _parts(kind: Any) -> dict[str, Any] | None:
    """Return the parts of a nested type with their subscripts, ``None`` if it has no parts."""
    mapping = getattr(kind, "mapping", None)
    if isinstance(mapping, Mapping):
        return {f"[{key!r}]": part for key, part in mapping.items()}
    names = getattr(kind, "attribute_names", None)
    attributes = getattr(kind, "attributes", None)
    if names is not None and attributes is not None:
        values = getattr(attributes, "components", attributes)
        return {f".{key}": part for key, part in zip(names, values, strict=False)}
    kind = getattr(kind, "components_tuple", kind)  # a list keeps its parts in a tuple
    components = getattr(kind, "components", None)
    if isinstance(components, Sequence):
        return {f"[{at}]": part for at, part in enumerate(components)}
    return None


def _count(kind: Any, parts: Mapping[str, Any]) -> str:
    noun = type(kind).__name__.lower()
    if noun == "dict":
        return _short(f"a dict with keys {', '.join(key[1:-1] for key in parts)}")
    return f"a {noun} of {len(parts)}"


def _words(kind: Any) -> str:
    """Return what an argument was traced as, in words."""
    name = type(kind).__name__
    if isinstance(kind, tf.TensorSpec):
        return f"a tensor of shape {kind.shape} and dtype {kind.dtype.name}"
    if name == "Literal":
        return _short(repr(kind.value))
    if name == "Weakref":
        return _object(kind._ref())
    parts = _parts(kind)
    return _short(str(kind)) if parts is None else _count(kind, parts)


def _object(value: Any) -> str:
    if value is None:
        return "an object that is gone"
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    label = f" {name!r}" if isinstance(name, str) else ""
    return f"a {type(value).__name__}{label}"


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
