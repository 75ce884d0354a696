"""Scores TraceLens and ``torch.autograd.detect_anomaly`` on the nan zoo, side by side.

Usage: ``python benchmarks/zoo_score.py [native|python]``. Found: the tool said that something is
non-finite. Right line: the innermost line of the program that it named is a marked one. False
alarms: correct programs in which it found something.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "fixtures" / "nan_zoo"))
import zoo  # noqa: E402

FRAME = re.compile(r'File "([^"]+)", line (\d+)')
RAISED = "returned nan values"
Answer = tuple[bool, str]


def last_line_of_program(text: str) -> str:
    """The innermost line of the zoo in a printed traceback, as ``file:line``; empty if none."""
    for file, line in reversed(FRAME.findall(text)):
        if Path(file).is_relative_to(zoo.ROOT):
            return zoo.place(file, int(line))
    return ""


def ask_detect_anomaly(case: zoo.Case) -> Answer:
    """Run a program under detect_anomaly; what it raised and the line it printed."""
    import torch

    sys.path.insert(0, str(case.path.parent))
    silent = io.StringIO()
    found, line = False, ""
    with warnings.catch_warnings(record=True) as said, contextlib.redirect_stdout(silent):
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly():
                runpy.run_path(str(case.path), run_name="__main__")
        except RuntimeError as error:
            found = RAISED in str(error)
        except Exception:
            found = False
    if found:
        traces = [str(each.message) for each in said if "forward call" in str(each.message)]
        line = last_line_of_program(traces[-1]) if traces else ""
    sys.path.remove(str(case.path.parent))
    return found, line


def ask_tracelens(cases: list[zoo.Case], engine: str) -> dict[str, Answer]:
    """Run all programs under TraceLens; its verdicts and lines by program."""
    answers: dict[str, Answer] = {}
    runner = REPOSITORY / "tests" / "torch" / "zoo_runner.py"
    with tempfile.TemporaryDirectory() as folder:
        for needs in ("", "compile"):
            paths = [str(case.path) for case in cases if case.needs == needs]
            done = subprocess.run(
                [sys.executable, "-W", "ignore", runner, engine, folder, *paths],
                capture_output=True,
                text=True,
            )
            for text in done.stdout.splitlines():
                record = json.loads(text)
                why = record.get("why") or {"verdict": "crash", "first_cause": None}
                source = (why["first_cause"] or {}).get("source")
                line = zoo.place(source["file"], source["line"]) if source else ""
                answers[record["program"]] = (why["verdict"] == "non-finite", line)
    return answers


def main() -> None:
    engine = sys.argv[1] if len(sys.argv) > 1 else "native"
    cases = zoo.load()
    ours = ask_tracelens(cases, engine)
    theirs = {str(case.path): ask_detect_anomaly(case) for case in cases}
    bugs = [case for case in cases if case.is_bug]
    right = [case for case in cases if not case.is_bug]
    for case in bugs:
        words = []
        for answers in (theirs, ours):
            found, line = answers.get(str(case.path), (False, ""))
            good = line in case.culprits + case.also
            words.append("right line" if found and good else "found" if found else "-")
        print(f"{case.name:32} detect_anomaly: {words[0]:12} tracelens: {words[1]}")
    print(f"\n{'':32} {'found':>8} {'right line':>12} {'false alarms':>14}")
    for name, answers in (("detect_anomaly", theirs), (f"tracelens ({engine})", ours)):
        got = [answers.get(str(case.path), (False, "")) for case in bugs]
        found = sum(each for each, _ in got)
        lines = sum(
            each and line in case.culprits + case.also
            for case, (each, line) in zip(bugs, got, strict=True)
        )
        alarms = sum(answers.get(str(case.path), (False, ""))[0] for case in right)
        print(f"{name:32} {found:>4}/{len(bugs)} {lines:>8}/{len(bugs)} {alarms:>10}/{len(right)}")


if __name__ == "__main__":
    main()
