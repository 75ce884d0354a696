"""What known devices can do at most: the roofs of the roofline.

Dense peaks (no sparsity) of the vendors' data sheets, in TFLOP/s by element type, and memory
bandwidth in GB/s. ``fp32`` is the vector (CUDA or stream) cores; matrix cores serve the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracelens.errors import ConfigError

if TYPE_CHECKING:
    from tracelens.analysis.profile.data import ProfileData


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """The most a device can do.

    Attributes:
        name: its name.
        tflops: peak by ``fp64 fp32 tf32 fp16 fp8 int8``; bf16 counts as fp16.
        bandwidth_gbps: memory bandwidth, 10^9 bytes a second; ``None`` if not known.
        source: where the figures come from.
    """

    name: str
    tflops: dict[str, float] = field(default_factory=dict)
    bandwidth_gbps: float | None = None
    source: str = "given"

    def peak(self, precision: str) -> float | None:
        """Return the peak of a precision in TFLOP/s; fp16's for bf16; ``None`` if not known."""
        return self.tflops.get({"bf16": "fp16"}.get(precision, precision))


def _limits(
    name: str, source: str, bandwidth_gbps: float, fp64: float, fp32: float, fp16: float,
    tf32: float | None = None, fp8: float | None = None, int8: float | None = None,
) -> DeviceLimits:  # fmt: skip
    given = {"fp64": fp64, "fp32": fp32, "tf32": tf32, "fp16": fp16, "fp8": fp8, "int8": int8}
    return DeviceLimits(
        name, {key: value for key, value in given.items() if value}, bandwidth_gbps, source
    )


_NVIDIA, _AMD = "NVIDIA data sheet", "AMD data sheet"

KNOWN: tuple[tuple[str, DeviceLimits], ...] = (
    (r"GB200|B200", _limits("B200", _NVIDIA, 8000, 40, 80, 2250, 1100, 4500, 4500)),
    (r"H200", _limits("H200", _NVIDIA, 4800, 34, 67, 989, 494, 1979, 1979)),
    (r"H100.*NVL", _limits("H100 NVL", _NVIDIA, 3900, 30, 60, 835, 418, 1671, 1671)),
    (r"H100.*PCIe", _limits("H100 PCIe", _NVIDIA, 2000, 26, 51, 756, 378, 1513, 1513)),
    (r"H100|H800", _limits("H100 SXM", _NVIDIA, 3350, 34, 67, 989, 494, 1979, 1979)),
    (r"A100.*80", _limits("A100 80GB", _NVIDIA, 2039, 9.7, 19.5, 312, 156, int8=624)),
    (r"A100|A800", _limits("A100 40GB", _NVIDIA, 1555, 9.7, 19.5, 312, 156, int8=624)),
    (r"L40S", _limits("L40S", _NVIDIA, 864, 1.4, 91.6, 362, 183, 733, 733)),
    (r"\bL4\b", _limits("L4", _NVIDIA, 300, 0.47, 30.3, 121, 60, 242, 242)),
    (r"A10G?\b", _limits("A10", _NVIDIA, 600, 0.49, 31.2, 125, 62.5, int8=250)),
    (r"V100", _limits("V100 SXM2", _NVIDIA, 900, 7.8, 15.7, 125)),
    (r"\bT4\b", _limits("T4", _NVIDIA, 320, 0.25, 8.1, 65, int8=130)),
    (r"RTX 4090", _limits("RTX 4090", _NVIDIA, 1008, 1.3, 82.6, 165.2, 82.6, 660.6, 660.6)),
    (r"RTX 3090", _limits("RTX 3090", _NVIDIA, 936, 0.56, 35.6, 71, 35.6, int8=284)),
    (r"RTX 2080 Ti", _limits("RTX 2080 Ti", _NVIDIA, 616, 0.42, 13.4, 53.8, int8=215)),
    (r"MI355", _limits("MI355X", _AMD, 8000, 78.6, 157.3, 2516, fp8=5033, int8=5033)),
    (r"MI325", _limits("MI325X", _AMD, 6000, 81.7, 163.4, 1307, 653.7, 2614, 2614)),
    (r"MI300X|MI300", _limits("MI300X", _AMD, 5300, 81.7, 163.4, 1307, 653.7, 2614, 2614)),
    (r"MI250X", _limits("MI250X", _AMD, 3277, 47.9, 47.9, 383, int8=383)),
    (r"MI250", _limits("MI250", _AMD, 3277, 45.3, 45.3, 362, int8=362)),
    (r"MI210", _limits("MI210", _AMD, 1638, 22.6, 22.6, 181, int8=181)),
)
"""Pattern of a device's name, as the profiler tells it, and its limits; the first match counts.
RTX 2080 Ti and 3090: matrix peak with 32-bit accumulation, which training uses."""


def limits_of(name: str) -> DeviceLimits | None:
    """Return the limits of a known device, ``None`` of others.

    Examples:
        >>> limits_of("NVIDIA H100 80GB HBM3").peak("bf16")
        989
    """
    for pattern, limits in KNOWN:
        if re.search(pattern, name, re.IGNORECASE):
            return limits
    return None


def given_limits(
    name: str | None, peak_tflops: float | None, bandwidth_gbps: float | None
) -> DeviceLimits | None:
    """Return the limits that a person gave; ``None`` if they gave none.

    Args:
        name: of a known device.
        peak_tflops: a peak for every element type, in place of the known ones.
        bandwidth_gbps: memory bandwidth in place of the known one.

    Raises:
        ConfigError: no device of that name is known, or a figure is not above 0.
    """
    known = limits_of(name) if name else None
    if name and known is None and peak_tflops is None and bandwidth_gbps is None:
        names = ", ".join(limits.name for _, limits in KNOWN)
        raise ConfigError(f"no limits of {name!r} are known; choose from {names}")
    for figure in (peak_tflops, bandwidth_gbps):
        if figure is not None and not figure > 0:
            raise ConfigError("a device's peak and bandwidth must be above 0")
    if known is None and peak_tflops is None and bandwidth_gbps is None:
        return None
    kinds = ("fp64", "fp32", "tf32", "fp16", "fp8", "int8")
    tflops = dict.fromkeys(kinds, peak_tflops) if peak_tflops else known.tflops if known else {}
    bandwidth = bandwidth_gbps or (known.bandwidth_gbps if known else None)
    source = "given" if peak_tflops or bandwidth_gbps else known.source if known else "given"
    return DeviceLimits(
        known.name if known else name or "given",
        {key: value for key, value in tflops.items() if value is not None},
        bandwidth,
        source,
    )


def recorded_limits(data: ProfileData) -> DeviceLimits | None:
    """Return the limits of the device that a trace names; ``None`` if it names none that is known.

    Importers and recorders tell devices by a note of kind ``device`` whose ``name`` is the
    device's.
    """
    for note in data.reader.notes(data.rank):
        if note.get("kind") == "device":
            found = limits_of(str(note.get("name", "")))
            if found is not None:
                return found
    return None
