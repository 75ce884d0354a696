"""``python mutate_recordings.py FOLDER SEED COUNT [NAME]`` damages recordings and imports them.

Every import and every view of what was imported has to end with exit code 0, 2 or 3, in time, in
bounded memory, and must not write anywhere but at the trace. Prints how often each code came.
"""

from __future__ import annotations

import contextlib
import io
import random
import resource
import signal
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from foreign_files import MAKERS
from mutate import KINDS, damage

from tracelens.cli import main as tracelens

MEMORY_BYTES = 2 << 30
MOST_SECONDS = 20
VIEWS = ("steps", "idle", "kernels", "ops", "tree", "launch", "memory", "comm", "roofline",
         "critical", "flame", "findings")  # fmt: skip
NUMBERS = (b"-1", b"1e400", b"9223372036854775807", b"-9223372036854775808", b"1e18",
           b"NaN", b"18446744073709551616", b"null", b'"x"', b"[]", b"{}", b"1e-10")  # fmt: skip


def spoil(data: bytes, dice: random.Random) -> bytes:
    """Damage bytes in one of many ways, some of which a parser takes for sound."""
    kind = dice.choice((*KINDS, "cut", "twice", "number", "number", "swap"))
    if kind in KINDS:
        return damage(data, kind, dice)
    first, last = sorted(dice.randrange(len(data)) for _ in range(2))
    if kind == "cut":
        return data[:first] + data[last:]
    if kind == "twice":
        return data[:last] + data[first:]
    if kind == "swap":
        middle = dice.randrange(first, last + 1)
        return data[:first] + data[middle:last] + data[first:middle] + data[last:]
    begin = first
    while begin < len(data) and not 48 <= data[begin] <= 57:
        begin += 1
    end = begin
    while end < len(data) and 48 <= data[end] <= 57:
        end += 1
    return data[:begin] + dice.choice(NUMBERS) + data[end:]


def run(*words: str) -> tuple[int, str]:
    """Run a verb; return its exit code and what it says on stderr."""
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        code = tracelens(words)
    return code, told.getvalue()


def main(folder: Path, seed: int, count: int, only: str = "") -> None:
    """Damage, import, look."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    dice = random.Random(seed)
    codes: Counter[int] = Counter()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    trace = folder / "out.tltrace"
    for name, make in MAKERS.items():
        if only and name != only:
            continue
        sound = make(folder / name).read_bytes()
        for turn in range(count):
            spoiled = sound
            for _ in range(dice.randrange(1, 4)):
                spoiled = spoil(spoiled, dice) or b"\0"
            (folder / name).write_bytes(spoiled)
            signal.alarm(MOST_SECONDS)
            asked = ["import"]
            try:
                code, told = run("import", str(folder / name), "-o", str(trace), "--force")
                codes[code] += 1
                assert code in (0, 2, 3), (code, told)
                lines = told.splitlines()
                assert all(line.isprintable() and len(line) < 2000 for line in lines), told
                if code == 0:
                    view = dice.choice(VIEWS)
                    for asked in (["profile"], ["profile", view], ["summary"]):
                        for more in ([], ["--json"]):
                            asked_code, told = run(asked[0], str(trace), *asked[1:], *more)
                            assert asked_code in (0, 1), (asked_code, told)
            except BaseException as error:
                (folder / "failing").mkdir(exist_ok=True)
                (folder / "failing" / f"{turn}-{name}").write_bytes(spoiled)
                error.add_note(f"{name}, turn {turn}, at {asked}")
                raise
            finally:
                signal.alarm(0)
            left = {each.name for each in folder.iterdir()} - {*MAKERS, "out.tltrace"}
            assert not left, left
    print(*(f"{code}:{n}" for code, n in sorted(codes.items())))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
