"""Limits of the floating dtypes, computed from their exponent and mantissa widths.

numpy has no bfloat16 and no float8, and the core imports no framework, so the limits come from
the IEEE 754 formulas: with ``e`` exponent and ``m`` mantissa bits, ``emax = 2**(e-1) - 1``,
largest ``(2 - 2**-m) * 2**emax``, smallest normal ``2**(1 - emax)``, smallest subnormal
``2**(1 - emax - m)``, epsilon ``2**-m``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_WIDTHS = {
    "float16": (5, 10),
    "bfloat16": (8, 7),
    "float32": (8, 23),
    "float64": (11, 52),
    "float8_e5m2": (5, 2),
    "complex32": (5, 10),
    "complex64": (8, 23),
    "complex128": (11, 52),
}
_ALIASES = {
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "c10::Half": "float16",
    "c10::BFloat16": "bfloat16",
}


@dataclass(frozen=True, slots=True)
class FloatLimits:
    """The range of one floating dtype (of the real part for a complex one).

    Attributes:
        largest: largest finite value.
        smallest_normal: smallest positive value with full precision.
        smallest: smallest positive (subnormal) value; less than half of it rounds to 0.
        epsilon: distance from 1 to the next larger value.
    """

    largest: float
    smallest_normal: float
    smallest: float
    epsilon: float

    @property
    def exp_limit(self) -> float:
        """Largest ``x`` whose ``exp(x)`` is finite: the logarithm of ``largest``."""
        return math.log(self.largest)

    @property
    def sqrt_limit(self) -> float:
        """Largest ``x`` whose square is finite."""
        return math.sqrt(self.largest)


def limits(dtype: str) -> FloatLimits | None:
    """Return the limits of a dtype by its neutral name, ``None`` if it is not a known float.

    >>> limits("float16").largest, round(limits("float32").exp_limit, 1)
    (65504.0, 88.7)
    """
    name = dtype.removeprefix("torch.")
    name = _ALIASES.get(name, name)
    if name == "float8_e4m3fn":
        # The one format that gives its top exponent to numbers: 1.75 * 2**8, and has no Inf.
        return FloatLimits(448.0, 2.0**-6, 2.0**-9, 0.125)
    widths = _WIDTHS.get(name)
    if widths is None:
        return None
    exponent_bits, mantissa_bits = widths
    emax = 2 ** (exponent_bits - 1) - 1
    return FloatLimits(
        largest=(2.0 - 2.0**-mantissa_bits) * 2.0**emax,
        smallest_normal=2.0 ** (1 - emax),
        smallest=2.0 ** (1 - emax - mantissa_bits),
        epsilon=2.0**-mantissa_bits,
    )


def is_float(dtype: str) -> bool:
    """Tell whether values of the dtype can be non-finite; an unrecorded dtype might."""
    return not dtype or dtype.removeprefix("torch.").startswith(("float", "bfloat", "complex"))
