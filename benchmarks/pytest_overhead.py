"""What the pytest plugin costs: at start-up unused, and on a suite of real model tests.

    python benchmarks/pytest_overhead.py [-r ROUNDS] [--suite torch|keras]

Start-up: pytest collects one empty test with and without the plugin, in turn; the differences of
pairs are told. Suite: the same tests with ``--nan=off`` and ``--nan=fail``, in turn, seconds of
CPU and wall-clock of the tests themselves (imports and collection left out); an alarm is an error.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SUITES = REPOSITORY / "tests" / "pytest_plugin" / "suite"

CLOCK = """
import time
import pytest

REPEATS = {repeats}
spent = [0.0, 0.0]

def pytest_generate_tests(metafunc):
    metafunc.fixturenames.append("again")
    metafunc.parametrize("again", range(REPEATS), indirect=False)

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    cpu, wall = time.process_time(), time.perf_counter()
    result = yield
    if "[0" not in item.name and "-0]" not in item.name:  # the first time everything is made
        spent[0] += time.process_time() - cpu
        spent[1] += time.perf_counter() - wall
    return result

def pytest_sessionfinish(session):
    with open("spent.txt", "w") as file:
        file.write(f"{{spent[0]}} {{spent[1]}}")
"""


def run_pytest(folder: Path, *arguments: str) -> float:
    """Run pytest; return the seconds of CPU it took, or end the benchmark if it failed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if done.returncode:
        sys.exit(f"pytest {' '.join(arguments)} failed:\n{done.stdout[-3000:]}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start_up(folder: Path, rounds: int) -> None:
    """Print what the unused plugin adds to the start of pytest."""
    (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    arguments = ("-p", "no:asyncio", "-p", "no:xdist", "test_nothing.py")
    deltas, plain = [], []
    for _ in range(rounds):
        without = run_pytest(folder, "-p", "no:tracelens", *arguments)
        plain.append(without)
        deltas.append(run_pytest(folder, *arguments) - without)
    print(
        f"start-up: {statistics.median(plain) * 1e3:.0f} ms without the plugin, "
        f"{statistics.median(deltas) * 1e3:+.1f} ms of CPU with it unused "
        f"(median of {rounds} pairs; least {min(plain) * 1e3:.0f} ms)"
    )


def suite(folder: Path, name: str, rounds: int, repeats: int) -> None:
    """Print the ratio of a suite under ``--nan=fail`` to the suite alone."""
    source = (SUITES / f"suite_{name}.py").read_text(encoding="utf-8")
    # A unittest class takes no parameters, so it cannot be repeated.
    (folder / "test_suite.py").write_text(source.partition("\nclass TestLayers")[0])
    (folder / "conftest.py").write_text(CLOCK.format(repeats=repeats))
    spent: dict[str, list[list[float]]] = {"off": [], "fail": []}
    for number in range(rounds):
        for mode in ("off", "fail") if number % 2 else ("fail", "off"):
            run_pytest(folder, f"--nan={mode}", "test_suite.py")
            spent[mode].append([float(t) for t in (folder / "spent.txt").read_text().split()])
    for place, clock in enumerate(("CPU", "wall")):
        off = [seconds[place] for seconds in spent["off"]]
        fail = [seconds[place] for seconds in spent["fail"]]
        ratios = [b / a for a, b in zip(off, fail, strict=True)]
        print(
            f"{name} suite, {clock:4}: {statistics.median(off):.2f} s alone, "
            f"{statistics.median(fail):.2f} s with --nan=fail: ratio "
            f"{statistics.median(ratios):.3f} (of the least: {min(fail) / min(off):.3f})"
        )
    print(f"{name} suite: no alarm in {rounds} runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=7)
    parser.add_argument("-n", "--repeats", type=int, default=6, help="of each test in a run")
    parser.add_argument("--suite", choices=["torch", "keras"], default="torch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        start_up(Path(text), 3 * options.rounds)
    with tempfile.TemporaryDirectory() as text:
        suite(Path(text), options.suite, options.rounds, options.repeats)


if __name__ == "__main__":
    main()
