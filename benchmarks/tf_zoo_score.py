"""Scores TraceLens and ``tf.debugging.enable_check_numerics`` on the TensorFlow zoo, side by side.

    python benchmarks/tf_zoo_score.py [--quick] [NAME ...]

Found: the tool said that something is non-finite. Right line: the line of the program that it named
is a marked one. False alarms: correct programs in which it found something. Check_numerics raises
where it finds something and prints one line of the program; each program has a process of its own
there, as its ops stay in what was traced. ``--quick`` takes every eighth program.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "fixtures" / "nan_zoo"))
import zoo  # noqa: E402

SAID = "Detected Infinity or NaN"
EAGER = "eagerly-executing op"
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
Answer = tuple[bool, str]


def run_check_numerics(program: str) -> None:
    """In a process of its own: run a program under check_numerics, print what it found where."""
    import tensorflow as tf

    tf.debugging.enable_check_numerics()
    found, line = False, 0
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(program, run_name="__main__")
        except Exception as error:
            found = SAID in str(error)
            line = line_told(error, program) if found else 0
    print(json.dumps([found, line]))


def line_told(error: Exception, program: str) -> int:
    """The innermost line of a program that check_numerics names, 0 if none.

    That is where the op was made; of an eager op it prints no stack, but its exception has one.
    """
    text = str(error)
    if EAGER in text:
        frames = traceback.extract_tb(error.__traceback__)
        return next((f.lineno or 0 for f in reversed(frames) if f.filename == program), 0)
    made = text[text.find(SAID) :].split("Original stack trace")[0]
    lines = re.findall(rf"{Path(program).name} \(L(\d+)\)", made)
    return int(lines[-1]) if lines else 0


def ask_check_numerics(case: zoo.Case) -> Answer:
    """What check_numerics found in a program, and the line of it that it named."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--program", case.path],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
    )
    if done.returncode:
        return False, ""
    found, line = json.loads(done.stdout.splitlines()[-1])
    return found, zoo.place(case.path, line)


def ask_tracelens(cases: list[zoo.Case]) -> dict[str, Answer]:
    """Run all programs under TraceLens; its verdicts and lines by program."""
    answers: dict[str, Answer] = {}
    runner = REPOSITORY / "tests" / "tensorflow" / "zoo_runner.py"
    with tempfile.TemporaryDirectory() as folder:
        for needs in sorted({case.needs for case in cases}):
            paths = [str(case.path) for case in cases if case.needs == needs]
            done = subprocess.run(
                [sys.executable, "-W", "ignore", runner, folder, *paths],
                capture_output=True,
                text=True,
                env=os.environ | ENVIRONMENT,
            )
            for text in done.stdout.splitlines():
                record = json.loads(text)
                why = record.get("why") or {"verdict": "crash", "first_cause": None}
                source = (why["first_cause"] or {}).get("source")
                line = zoo.place(source["file"], source["line"]) if source else ""
                answers[record["program"]] = (why["verdict"] == "non-finite", line)
    return answers


def main() -> None:
    """Print every bug's answers and the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="programs; all without any")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--program", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program:
        run_check_numerics(options.program)
        return
    cases = [c for c in zoo.load("tensorflow") if not options.names or c.name in options.names]
    cases = cases[:: 8 if options.quick else 1]
    ours = ask_tracelens(cases)
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        told = list(pool.map(ask_check_numerics, cases))
    theirs = {str(case.path): answer for case, answer in zip(cases, told, strict=True)}
    bugs = [case for case in cases if case.is_bug]
    right = [case for case in cases if not case.is_bug]
    for case in bugs:
        words = []
        for answers in (theirs, ours):
            found, line = answers.get(str(case.path), (False, ""))
            good = line in case.culprits + case.also
            words.append("right line" if found and good else "found" if found else "-")
        print(f"{case.name:32} check_numerics: {words[0]:12} tracelens: {words[1]}")
    print(f"\n{'':32} {'found':>8} {'right line':>12} {'false alarms':>14}")
    for name, answers in (("check_numerics", theirs), ("tracelens", ours)):
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
