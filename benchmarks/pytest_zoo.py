"""Scores the pytest plugin on the whole nan zoo: every program is a test under ``--nan=fail``.

Usage: ``python benchmarks/pytest_zoo.py [torch|tensorflow]...``. A bug must fail, a correct program
must pass; a bug that fails by an exception of its own counts, and is told apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(REPOSITORY / "fixtures" / "nan_zoo"),
    str(REPOSITORY / "tests" / "pytest_plugin"),
]
import inner  # noqa: E402
import zoo  # noqa: E402

GROUPS = {"torch": ("", "compile"), "tensorflow": ("", "devices", "v1")}


def run_group(framework: str, needs: str) -> dict[str, inner.Told]:
    """Run the programs that share a process; what became of each."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--nan=fail", "--noconftest", "--rootdir=.", "-c/dev/null", "--tb=no"]
        programs = REPOSITORY / "tests" / "pytest_plugin" / "zoo_programs.py"
        subprocess.run(
            [sys.executable, "-m", "pytest", *inner.ALWAYS, *arguments, programs],
            cwd=folder,
            capture_output=True,
            env=os.environ
            | {"ZOO_FRAMEWORK": framework, "ZOO_NEEDS": needs, "OMP_NUM_THREADS": "1"}
            | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        found = inner.read_report(Path(folder) / "report.xml")
    return {name.removeprefix("test_program[")[:-1]: told for name, told in found.items()}


def main() -> int:
    wrong = 0
    print(f"{'':12} {'bugs failed':>12} {'told by name':>13} {'false alarms':>13} {'seconds':>8}")
    for framework in sys.argv[1:] or list(GROUPS):
        start = time.monotonic()
        cases = {case.name: case for case in zoo.load(framework)}
        told: dict[str, inner.Told] = {}
        for needs in GROUPS[framework]:
            told |= run_group(framework, needs)
        bugs = [name for name, case in cases.items() if case.is_bug]
        right = [name for name, case in cases.items() if not case.is_bug]
        failed = [name for name in bugs if name in told and told[name].outcome == "failed"]
        named = [name for name in failed if told[name].first]
        alarms = [name for name in right if name not in told or told[name].outcome != "passed"]
        print(
            f"{framework:12} {len(failed):>8}/{len(bugs)} {len(named):>9}/{len(bugs)} "
            f"{len(alarms):>10}/{len(right)} {time.monotonic() - start:>8.0f}"
        )
        for name in sorted({*bugs} - {*failed} | {*alarms}):
            print(f"  wrong: {name}: {told.get(name, 'did not run')}")
            wrong += 1
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
