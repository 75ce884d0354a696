"""One op's recorded arguments: shapes, element types, scalar values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

Shape = list[int]

_SIZES = {
    "float64": 8, "int64": 8, "complex64": 8, "complex128": 16, "float32": 4, "int32": 4,
    "float16": 2, "bfloat16": 2, "int16": 2, "bool": 1, "int8": 1, "uint8": 1,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip
_ALIASES = {
    "double": "float64", "long": "int64", "long int": "int64", "float": "float32", "int": "int32",
    "half": "float16", "short": "int16", "short int": "int16", "char": "int8",
    "signed char": "int8", "unsigned char": "uint8", "byte": "uint8",
    "c10::half": "float16", "c10::bfloat16": "bfloat16", "c10::float8_e4m3fn": "float8_e4m3fn",
    "c10::float8_e5m2": "float8_e5m2", "c10::float8_e4m3fnuz": "float8_e4m3fnuz",
    "c10::float8_e5m2fnuz": "float8_e5m2fnuz", "c10::complex<float>": "complex64",
    "c10::complex<double>": "complex128", "half_float::half": "float16", "dt_float": "float32",
    "dt_half": "float16", "dt_bfloat16": "bfloat16", "dt_double": "float64",
}  # fmt: skip


def element_type(text: str) -> str:
    """Return the neutral name of an element type as PyTorch's profiler or a trace spells it.

    Examples:
        >>> element_type("c10::BFloat16"), element_type("long int"), element_type("float32")
        ('bfloat16', 'int64', 'float32')
    """
    name = text.strip().lower().removeprefix("torch.")
    return _ALIASES.get(name, name)


@dataclass(frozen=True)
class OpCall:
    """Arguments of an op, by position; a list of tensors is one argument.

    Attributes:
        shapes: sizes of each argument; a list of shapes for a list of tensors, ``[]`` for a number.
        dtypes: element types, ``""`` where there is none.
        values: texts of numbers and lists of numbers, ``""`` for tensors.
        outputs: sizes of the outputs, where they are known.
    """

    shapes: list[Any]
    dtypes: list[Any]
    values: list[Any]
    outputs: list[Any]

    @classmethod
    def parse(cls, shapes: str, dtypes: str, values: str, outputs: str) -> OpCall:
        """Make one of the JSON texts of ``in_shapes in_dtypes in_values shapes``."""
        return cls(*(_list(text) for text in (shapes, dtypes, values, outputs)))

    def shape(self, at: int) -> Shape | None:
        """Return the sizes of a tensor argument, ``None`` if there is no tensor there."""
        found = self.shapes[at] if at < len(self.shapes) else None
        sizes = isinstance(found, list) and all(type(size) is int and size >= 0 for size in found)
        return found if sizes and self._has_type(at) else None

    def _has_type(self, at: int) -> bool:
        """A number has no sizes either: its type tells it from a tensor of one element."""
        kind = self.dtypes[at] if at < len(self.dtypes) else ""
        return bool(self.shapes[at]) or (
            isinstance(kind, str) and element_type(kind) in _SIZES and not self.value(at)
        )

    def item_size(self, at: int = 0) -> int:
        """Return the bytes of an element of an argument; 4 if its type is not known."""
        kind = self.dtypes[at] if at < len(self.dtypes) else ""
        if isinstance(kind, list):
            kind = kind[0] if kind else ""
        return _SIZES.get(element_type(str(kind or "")), 4)

    def dtype(self, at: int = 0) -> str:
        """Return the element type of an argument, ``""`` if it is not known."""
        kind = self.dtypes[at] if at < len(self.dtypes) else ""
        name = element_type(kind) if isinstance(kind, str) else ""
        return name if name in _SIZES else ""

    def value(self, at: int) -> str:
        """Return the text of a scalar argument, ``""`` if there is none."""
        found = self.values[at] if at < len(self.values) else ""
        return "" if found is None else str(found)

    def numbers(self, at: int) -> list[int] | None:
        """Return a scalar argument that is a list of whole numbers, or one of them."""
        try:
            found = json.loads(self.value(at))
        except (ValueError, RecursionError):
            return None
        if type(found) is int:
            return [found]
        sound = isinstance(found, list) and all(type(number) is int for number in found)
        return found if sound else None

    def flag(self, at: int) -> bool:
        """Return a scalar argument that is true or false; false if it is not there."""
        return self.value(at).strip().lower() in ("true", "1")

    @cached_property
    def tensors(self) -> list[tuple[Shape, int]]:
        """Sizes and bytes per element of every tensor, those in lists among them."""
        found = []
        for at, sizes in enumerate(self.shapes):
            if isinstance(sizes, list) and sizes and all(isinstance(s, list) for s in sizes):
                found += [(s, self.item_size(at)) for s in sizes if all(type(n) is int for n in s)]
            elif (shape := self.shape(at)) is not None:
                found.append((shape, self.item_size(at)))
        return found

    @property
    def output(self) -> Shape | None:
        """Sizes of the first output, if known."""
        first = self.outputs[0] if self.outputs else None
        return first if isinstance(first, list) and all(type(n) is int for n in first) else None


def one_line(text: str) -> str:
    """Return a text without line breaks and indents, which JSON of some profilers has.

    Examples:
        >>> one_line("[  [  8,  4  ]  ]")
        '[[8, 4]]'
    """
    return " ".join(text.split()).replace("[ ", "[").replace(" ]", "]")


def numel(shape: Shape) -> int:
    """Return the elements of a shape."""
    return prod(shape)


def broadcast(shapes: list[Shape]) -> Shape:
    """Return the shape that shapes broadcast to, as NumPy's rule; a mismatch takes the larger."""
    rank = max((len(shape) for shape in shapes), default=0)
    padded = [[1] * (rank - len(shape)) + shape for shape in shapes]
    return [0 if 0 in sizes else max(sizes) for sizes in zip(*padded, strict=True)]


def _list(text: str) -> list[Any]:
    try:
        found = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []
