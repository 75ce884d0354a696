"""Measure what this machine's device can do: the roofs for ``tracelens profile T roofline``.

python benchmarks/device_limits.py [--device cuda] [--size 8192]

Prints the best speed of a square matrix product by element type, and of copying a large tensor
(bytes read plus bytes written), with the flags that hand them to TraceLens.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

REPEATS = 20


def best_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Return the shortest of some runs, warmed up."""
    times = []
    for _ in range(REPEATS + 3):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return min(times[3:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tflops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return the speed of ``size x size x size`` products."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty(size, size, device=device, dtype=dtype)
    return 2 * size**3 / best_seconds(device, lambda: torch.mm(a, b, out=out)) / 1e12


def bandwidth(device: torch.device, size_bytes: int) -> float:
    """Return GB/s of copying a tensor."""
    source = torch.zeros(size_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size_bytes / best_seconds(device, lambda: target.copy_(source)) / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, help="of the matrices (default: 8192, 1024 on a CPU)")
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    size = options.size or (8192 if on_gpu else 1024)
    print(
        torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads"
    )
    found = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        found[dtype] = tflops(device, dtype, size)
        print(f"{str(dtype).removeprefix('torch.'):10} {found[dtype]:9.2f} TFLOP/s")
    speed = bandwidth(device, (4 << 30) if on_gpu else (256 << 20))
    print(f"{'copy':10} {speed:9.1f} GB/s")
    main_type = torch.bfloat16 if on_gpu else torch.float32
    print(
        f"tracelens profile T roofline --peak-tflops {found[main_type]:.4g} --bandwidth {speed:.0f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
