"""Texts of recorded things for the screen: safe, short, aligned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath

from tracelens.events import Op, Phase, Stats, TensorRecord

PHASE_WORDS = {
    Phase.OTHER: "other",
    Phase.DATA: "data",
    Phase.FORWARD: "fwd",
    Phase.BACKWARD: "bwd",
    Phase.OPTIMIZER: "opt",
}

_SHORT_DTYPES = {
    "float16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
    "float64": "f64",
    "int8": "i8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
    "uint8": "u8",
    "complex64": "c64",
    "complex128": "c128",
}
_NS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns"))
_BYTES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def safe(text: object) -> str:
    r"""Return a text without control characters: what a trace says must not drive the terminal.

    >>> safe("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in plain)


def fit(text: str, width: int, *, keep_end: bool = False) -> str:
    """Return a text of at most ``width`` characters, an ellipsis where it was cut.

    >>> fit("encoder.layers.3", 10), fit("encoder.layers.3", 10, keep_end=True)
    ('encoder.l…', '….layers.3')
    """
    if len(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    return "…" + text[1 - width :] if keep_end else text[: width - 1] + "…"


def duration(value_ns: float | None) -> str:
    """Return a duration in at most seven characters; empty if it was not measured.

    >>> duration(900), duration(1_530_000), duration(None)
    ('900 ns', '1.53 ms', '')
    """
    return "" if value_ns is None else _scaled(value_ns, _NS)


def size(value_bytes: float) -> str:
    """Return a size of a file or memory.

    >>> size(2048), size(188_300_000)
    ('2.00 KiB', '180 MiB')
    """
    return _scaled(value_bytes, _BYTES)


def _scaled(value: float, units: Sequence[tuple[int, str]]) -> str:
    for factor, unit in units:
        if value >= factor:
            scaled = value / factor
            if factor == 1 or scaled >= 99.95:
                return f"{scaled:.0f} {unit}"
            return f"{scaled:.2f} {unit}" if scaled < 9.995 else f"{scaled:.1f} {unit}"
    return f"{value:.0f} {units[-1][1]}"


def number(value: float | None) -> str:
    """Return a number in at most nine characters.

    >>> number(0.5), number(-123456.0), number(1e-9), number(float("nan")), number(None)
    ('0.5', '-1.235e5', '1e-9', 'nan', '-')
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.4g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def count(value: int) -> str:
    """Return a count with thousands marked.

    >>> count(9998790)
    '9,998,790'
    """
    return f"{value:,}"


def dtype(name: str) -> str:
    """Return a dtype's short name.

    >>> dtype("float32"), dtype("float8_e5m2")
    ('f32', 'float8_e5m2')
    """
    return _SHORT_DTYPES.get(name, safe(name))


def shape(sizes: Sequence[int] | None) -> str:
    """Return a shape; ``?`` if it was not recorded.

    >>> shape((8, 128)), shape(()), shape(None)
    ('8×128', 'scalar', '?')
    """
    if sizes is None:
        return "?"
    return "×".join(map(str, sizes)) if len(sizes) else "scalar"


def shapes(op: Op) -> str:
    """Return the shapes an op read and wrote: ``8×4 → 8×2``."""
    known = [tensor for tensor in op.inputs if tensor.shape is not None]
    ins = ",".join(dict.fromkeys(shape(tensor.shape) for tensor in known))
    outs = ",".join(
        dict.fromkeys(shape(tensor.shape) for tensor in op.outputs if tensor.shape is not None)
    )
    return outs if not ins or ins == outs else f"{ins}→{outs}"


def place(op: Op) -> str:
    """Return an op's source as ``train.py:12``; empty if unknown."""
    return "" if op.source is None else f"{PurePath(safe(op.source.file)).name}:{op.source.line}"


def bad_counts(stats: Stats) -> str:
    """Return the non-finite counts of a tensor: ``3 nan 1 inf of 8``; empty if it is finite."""
    parts = []
    if stats.nan:
        parts.append(f"{count(stats.nan)} nan")
    if stats.posinf:
        parts.append(f"{count(stats.posinf)} +inf")
    if stats.neginf:
        parts.append(f"{count(stats.neginf)} -inf")
    return f"{' '.join(parts)} of {count(stats.numel)}" if parts else ""


def tensor_kind(tensor: TensorRecord) -> str:
    """Return ``f32 8×128``, with the device where it is not the CPU."""
    parts = [dtype(tensor.dtype)] if tensor.dtype else []
    if tensor.shape is not None:
        parts.append(shape(tensor.shape))
    if tensor.device not in ("", "cpu"):
        parts.append(safe(tensor.device))
    return " ".join(parts) or "?"


def values(stats: Stats | None) -> str:
    """Return the statistics of a tensor in one line; empty if it was not measured."""
    if stats is None:
        return ""
    parts = [bad_counts(stats)] if stats.nonfinite else []
    if stats.vmin is not None and stats.vmax is not None:
        parts.append(f"[{number(stats.vmin)} … {number(stats.vmax)}]")
    if stats.mean is not None:
        spread = f"±{number(stats.std)}" if stats.std is not None else ""
        parts.append(f"µ {number(stats.mean)}{spread}")
    if stats.zero and stats.zero > 0:
        parts.append(f"{100 * stats.zero / max(stats.numel, 1):.0f}% zero")
    return "  ".join(parts)
