"""Time and memory of importing Kineto's profiles, and one blown up to a gigabyte.

    python benchmarks/import_profile.py PROFILE...              import each, in a process of its own
    python benchmarks/import_profile.py PROFILE --copies 40     one file of 40 copies of its events
    python benchmarks/import_profile.py PROFILE --events 4.1e6  as many copies as that takes

The copies follow one another in time, with ids, sequence numbers and steps of their own. Wall time
is without the start of Python and its imports; the peak is of the whole process.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_SHIFTED = re.compile(
    rb'("(?:ts|correlation|[Ee]xternal id|id|Sequence number|Ev Idx|Python (?:parent )?id)"'
    rb'\s*:\s*|"ProfilerStep\s*#)(\d+)'
)
_ARRAY = re.compile(rb'"traceEvents"\s*:\s*\[')

_IMPORT = """
import json, resource, sys, time
from pathlib import Path
import numpy, pyarrow.parquet
from tracelens.convert import kineto, kineto_file
from tracelens.storage import bulk
begin = time.perf_counter()
made = kineto.convert(Path(sys.argv[1]), Path(sys.argv[2]), force=True)
wall = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"wall": wall, "peak": peak, "rows": made.rows, "ops": made.ops,
                  "kernels": made.kernels, "steps": made.steps, "problems": made.problems}))
"""


def main() -> None:
    """Import what the command line names and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profiles", nargs="+", type=Path, metavar="PROFILE")
    parser.add_argument("--copies", type=int, default=0, help="blow each up to so many copies")
    parser.add_argument("--events", type=float, default=0, help="blow each up to so many events")
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the fastest counts")
    parser.add_argument("--keep", type=Path, help="where to keep the blown-up file")
    options = parser.parse_args()
    print(f"{'profile':44} {'MB':>7} {'wall s':>7} {'peak MB':>8} {'rows':>9} {'rows/s':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for profile in options.profiles:
            path = profile
            if options.copies or options.events:
                path = options.keep or Path(folder) / "big.json"
                if not (options.keep and path.exists()):
                    blow_up(profile, path, options.copies, int(options.events))
            runs = [measure(path, Path(folder) / "x.tltrace") for _ in range(options.repeat)]
            best = min(runs, key=lambda run: run["wall"])
            size = len(_text(path)) if path.stat().st_size < 1 << 26 else path.stat().st_size
            print(
                f"{profile.name[-44:]:44} {size / 1e6:7.1f} {best['wall']:7.2f} "
                f"{max(run['peak'] for run in runs) / 1024:8.0f} {best['rows']:9} "
                f"{best['rows'] / best['wall']:9.0f}"
            )
            for problem in best["problems"]:
                print(f"  {problem}")


def measure(path: Path, target: Path) -> dict:
    """Import a file in a process of its own."""
    command = [sys.executable, "-c", _IMPORT, str(path), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def blow_up(profile: Path, path: Path, copies: int, events: int) -> None:
    """Write a file with copies of a profile's events, one after the other in time."""
    text = _text(profile)
    found = _ARRAY.search(text)
    begin = found.end() if found else text.index(b"[") + 1
    end = text.rindex(b"]", 0, None if not found else len(text)) if not found else _end(text, begin)
    body = text[begin:end].strip()
    if not copies:
        copies = max(1, round(events / body.count(b'"ph"')))
    times = [float(each) for each in re.findall(rb'"ts"\s*:\s*(\d+(?:\.\d+)?)', body)]
    low = sorted(times)[len(times) // 100]
    span = int(max(times) - low) + 1000
    with open(path, "wb") as file:
        file.write(text[:begin])
        for copy in range(copies):
            file.write(b",\n" if copy else b"")
            file.write(_shifted(body, copy, span))
        file.write(text[end:])


def _shifted(body: bytes, copy: int, span: int) -> bytes:
    def moved(found: re.Match[bytes]) -> bytes:
        key = found[1]
        by = span if b'"ts"' in key else 100 if b"ProfilerStep" in key else 10_000_000
        return key + str(int(found[2]) + copy * by).encode()

    return _SHIFTED.sub(moved, body) if copy else body


def _end(text: bytes, begin: int) -> int:
    """Return where the array that begins there ends."""
    from tracelens.convert.kineto_text import events_of

    _, at, _ = events_of(text[begin:])
    return begin + at - 1


def _text(path: Path) -> bytes:
    from tracelens.convert.kineto_bytes import sources

    return b"".join(sources(path)[0].pieces())


if __name__ == "__main__":
    main()
