"""Importing and analysing a profile: TraceLens against HolisticTraceAnalysis, on this machine.

    python benchmarks/profile_peers.py --hta ENV/bin/python PROFILE...

``--hta`` names a Python that has HolisticTraceAnalysis. Each run is a process of its own; wall time
is without the start of Python and its imports, the peak is of the whole process, and the least of
``--repeat`` runs counts. TraceLens imports the file and makes the first page of ``tracelens
profile``; HTA reads it and makes its temporal, idle and kernel breakdowns, which is less.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_OURS = """
import importlib, json, pkgutil, resource, sys, time
from pathlib import Path
import isal.igzip, numpy, pyarrow.parquet, tracelens.analysis.profile, tracelens.convert
for package in (tracelens.analysis.profile, tracelens.convert):
    for found in pkgutil.iter_modules(package.__path__):
        if package is not tracelens.convert or found.name.startswith(("kineto", "profile")):
            importlib.import_module(f"{package.__name__}.{found.name}")
from tracelens.analysis.profile.data import load_profile
from tracelens.analysis.profile.overview import profile_overview
from tracelens.importing import import_recording
from tracelens.storage.reader import open_trace
begin = time.perf_counter()
import_recording(Path(sys.argv[1]), Path(sys.argv[2]), force=True)
imported = time.perf_counter()
with open_trace(sys.argv[2]) as reader:
    profile_overview(load_profile(reader))
end = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("RESULT" + json.dumps([imported - begin, end - imported, peak * 1024]))
"""

_HTA = """
import json, os, resource, sys, time
os.environ["HTA_DISABLE_NS_ROUNDING"] = "1"
from hta.trace_analysis import TraceAnalysis
begin = time.perf_counter()
analysis = TraceAnalysis(trace_files={0: sys.argv[1]}, include_last_profiler_step=True)
read = time.perf_counter()
for make in (analysis.get_temporal_breakdown, analysis.get_idle_time_breakdown,
             analysis.get_gpu_kernel_breakdown):
    make(visualize=False)
end = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("RESULT" + json.dumps([read - begin, end - read, peak * 1024]))
"""


def main() -> None:
    """Measure what the command line names and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("profiles", nargs="+", type=Path, metavar="PROFILE")
    parser.add_argument("--hta", metavar="PYTHON", help="a Python with HolisticTraceAnalysis")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print(f"{'profile':44} {'who':10} {'read s':>8} {'analyse s':>9} {'peak MB':>8}")
    for profile in options.profiles:
        ours = best(sys.executable, _OURS, profile, options.repeat)
        tell(profile, "tracelens", ours)
        theirs = best(options.hta, _HTA, profile, options.repeat) if options.hta else None
        if options.hta:
            tell(profile, "HTA", theirs)
        if ours and theirs:
            faster = (theirs[0] + theirs[1]) / (ours[0] + ours[1])
            print(f"{'':44} {faster:.1f} times as fast, {ours[2] / theirs[2]:.2f} of its memory")


def best(python: str, program: str, profile: Path, repeat: int) -> list[float] | None:
    """Run a program some times; return reading and analysing seconds, and peak bytes."""
    runs = []
    for _ in range(repeat):
        folder = tempfile.mkdtemp()
        try:
            done = subprocess.run(
                [python, "-c", program, str(profile), f"{folder}/x.tltrace"],
                capture_output=True, text=True,
            )  # fmt: skip
        finally:
            shutil.rmtree(folder)
        line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT")), "")
        if not line:
            print(f"{profile.name}: {(done.stderr.strip().splitlines() or ['no result'])[-1]}")
            return None
        runs.append(json.loads(line.removeprefix("RESULT")))
    return min(runs, key=lambda run: run[0] + run[1])


def tell(profile: Path, who: str, run: list[float] | None) -> None:
    """Print a row."""
    if run is not None:
        print(f"{profile.name[:44]:44} {who:10} {run[0]:8.2f} {run[1]:9.2f} {run[2] / 1e6:8.0f}")


if __name__ == "__main__":
    main()
