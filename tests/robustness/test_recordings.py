"""Recordings of other tools that are damaged or made to do harm: an answer in one line, in time."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from foreign_files import kineto_events

from profile_files import dump, snapshot
from tracelens.cli import main

HERE = Path(__file__).parent
EVENT = '{"ph":"X","cat":"cpu_op","name":"aten::mm","pid":1,"tid":1,"ts":1.0,"dur":5.0}'
KERNEL = {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 1, "dur": 5,
          "args": {"device": 0, "stream": 7, "correlation": 1}}  # fmt: skip
SCOPE = "https://www.speedscope.app/file-format-schema.json"
SAMPLED = {"type": "sampled", "name": "p", "unit": "seconds", "startValue": 0, "endValue": 1}
META = (
    "CREATE TABLE META_DATA_EXPORT(name, value)",
    "INSERT INTO META_DATA_EXPORT VALUES('EXPORT_PRODUCT_VERSION', '2024.4')",
)
KERNELS = (
    "CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL(start, end, deviceId, streamId, correlationId,"
    " globalPid, demangledName, shortName)",
    "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES(1, 5, 0, 0, 0, 0, 1, 1)",
)


@pytest.mark.parametrize("seed", [1])
def test_no_damage_to_any_recording_ends_in_a_traceback(tmp_path: Path, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "mutate_recordings.py", tmp_path, str(seed), "3"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {code.split(":")[0] for code in done.stdout.split()} <= {"0", "2", "3"}


def imported(
    recordings: Sequence[Path], capsys: pytest.CaptureFixture[str], code: int = 0
) -> tuple[Path, str]:
    """Import through the command line; return the trace and what was told, printable lines."""
    target = recordings[0].with_name("out.tltrace")
    assert main(["import", *map(str, recordings), "-o", str(target), "--force"]) == code
    told = capsys.readouterr().err
    assert all(line.isprintable() for line in told.splitlines())
    return target, told


def in_memory(recording: Path, limit_bytes: int) -> tuple[int, str]:
    """Import in a process that may have so much memory; return its code and what it told."""
    program = (
        "import resource, sys; from tracelens.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({limit_bytes}, {limit_bytes}))\n"
        "sys.exit(main(['import', sys.argv[1], '-o', sys.argv[2], '--force']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, recording, recording.with_name("out.tltrace")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.returncode, done.stderr


def packed(path: Path, head: bytes, piece: bytes, times: int) -> Path:
    """Write a file of gzip's that unpacks to far more than it is."""
    packer = zlib.compressobj(9, wbits=31)
    with open(path, "wb") as file:
        file.write(packer.compress(head))
        for _ in range(times):
            file.write(packer.compress(piece))
        file.write(packer.flush())
    return path


def test_an_event_without_an_end_takes_little_memory_and_time(tmp_path: Path) -> None:
    head = f'{{"traceEvents":[{EVENT},{{"ph":"X","name":"'.encode()
    for piece in (b"a" * (1 << 20), b'\\"' * (1 << 19)):
        bomb = packed(tmp_path / "a.json.gz", head, piece, 24)
        code, told = in_memory(bomb, 1 << 30)
        assert code == 0, told
        assert "does not end" in told
        assert "1 ops" in told


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    head = f'{{"$schema":"{SCOPE}","x":"'.encode()
    bomb = packed(tmp_path / "a.speedscope.json.gz", head, b"a" * (1 << 20), 600)
    code, told = in_memory(bomb, 2 << 30)
    assert code == 3
    assert "too much to read at once" in told


def test_stacks_that_multiply_are_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {**SAMPLED, "samples": [[0] * 20_000, [1]], "weights": [1, 1]}
    deep = {
        **SAMPLED, "type": "evented", "endValue": 9e4,
        "events": [{"type": "O", "frame": 1, "at": at} for at in range(8_000)],
    }  # fmt: skip
    file = tmp_path / "a.speedscope.json"
    file.write_text(json.dumps({
        "$schema": SCOPE, "profiles": [long, deep],
        "shared": {"frames": [{"name": "a" * 1_000_000}, {"name": "b" * 1_000}]},
    }))  # fmt: skip
    trace, told = imported([file], capsys)
    assert "samples are left out: distinct stacks" in told
    assert sum(each.stat().st_size for each in trace.rglob("*") if each.is_file()) < 8 << 20


def test_values_that_a_database_makes_up_are_not_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up = "CREATE TABLE StringIds(id, value GENERATED ALWAYS AS (hex(zeroblob(200000000))))"
    for name, *statements in (
        ("a.sqlite", made_up, "INSERT INTO StringIds(id) VALUES(1)"),
        ("b.sqlite", "CREATE VIEW StringIds AS SELECT 1 AS id, 'x' AS value"),
    ):
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            for statement in (*META, *statements, *KERNELS):
                connection.execute(statement)
            connection.commit()
    _, told = imported([tmp_path / "a.sqlite"], capsys, 3)
    if sys.version_info >= (3, 11):
        assert "too big" in told
    imported([tmp_path / "b.sqlite"], capsys, 3)


def test_archives_lead_nowhere_and_may_be_locked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    file = inside / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../outside.json", json.dumps({"traceEvents": kineto_events()}))
    imported([file], capsys)
    assert {each.name for each in tmp_path.rglob("*.json")} == {"manifest.json", "r00000-0.json"}
    data = bytearray(file.read_bytes())
    data[6] |= 1
    data[data.find(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(data)
    assert "encrypted" in imported([file], capsys, 3)[1]


@pytest.mark.parametrize(
    "about", [{"rank": 10**12, "world_size": 10**18}, {"rank": -1, "world_size": -1},
              {"rank": "x", "world_size": []}, {"rank": 10**40, "world_size": 10**40}, [], 7, None]
)  # fmt: skip
def test_a_rank_that_no_run_has_is_not_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], about: Any
) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"distributedInfo": about, "traceEvents": kineto_events()}))
    trace, _ = imported([file], capsys)
    assert main(["summary", str(trace), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ranks"] is None


def test_kernels_alone_are_imported_whatever_they_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"traceEvents": [KERNEL]}))
    _, told = imported([file], capsys)
    assert "1 kernels" in told


def test_a_message_about_a_file_reaches_no_terminal_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.pickle"
    file.write_bytes(b"\x80\x04\x8c\x07\x1b[31mos\x8c\x01x\x93.")
    assert "run code" in imported([file], capsys, 3)[1]
    file = tmp_path / "\x1b[31m.json"
    file.write_text("[")
    imported([file], capsys, 3)


def test_a_snapshot_of_nonsense_is_imported_as_far_as_it_makes_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = {"action": "alloc", "addr": 1 << 40, "size": 64, "stream": 0, "frames": [],
             "time_us": 1_700_000_000_000_000}  # fmt: skip
    itself: list[Any] = []
    itself.append(itself)
    odd = [{"size": 1 << 62}, {"size": -5, "addr": -1}, {"addr": 1 << 70}, {"time_us": 1 << 62},
           {"time_us": -(1 << 70)}, {"time_us": "x"}, {"frames": "z"}, {"frames": itself},
           {"frames": [1, {}, {"filename": 3, "line": "x"}]}]  # fmt: skip
    file = dump(snapshot([sound, *({**sound, **each} for each in odd)], []), tmp_path / "a.pickle")
    trace, _ = imported([file], capsys)
    for view in ("memory", "overview"):
        assert main(["profile", str(trace), view, "--json"]) == 0
        json.loads(capsys.readouterr().out)


def test_columns_of_other_types_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.sqlite"
    most, least = (1 << 63) - 1, -(1 << 63)
    rows = [("a", "b", "c", "d", "e", 0, "g", "h"), (1.5, 2.5, 1e300, b"\0", 9e18, 0, 1, 2),
            (1, 2, 0.5, 2.5, 0, 0, 1, 1), (most, least, 1, 1, most, 0, 1, 1),
            (-5, most, 0, 0, 0, 0, 1, 1)]  # fmt: skip
    with closing(sqlite3.connect(file)) as connection:
        for statement in (*META, "CREATE TABLE StringIds(id, value)", *KERNELS):
            connection.execute(statement)
        connection.execute("INSERT INTO StringIds VALUES(1, x'ff00'), (2, NULL), ('x', 3.5)")
        values = "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES(?, ?, ?, ?, ?, ?, ?, ?)"
        connection.executemany(values, rows)
        connection.commit()
    trace, told = imported([file], capsys)
    assert "left out" in told
    assert main(["profile", str(trace), "kernels", "--json"]) == 0


def test_a_host_of_any_name_makes_a_trace_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    name = "a\nb\x1b[31m" + "x" * 1000
    file.write_text(json.dumps({"host_name": name, "traceEvents": kineto_events()}))
    trace, _ = imported([file], capsys)
    assert main(["verify", str(trace)]) == 0


def test_what_holds_nothing_says_why_and_what_holds_only_samples_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"traceEvents": [{**KERNEL, "dur": 4e15}]}))
    assert (
        "impossible duration (below 0, or above a day) are left out (1)"
        in (imported([file], capsys, 3)[1])
    )
    stacks = tmp_path / "a.raw"
    stacks.write_text("main (a.py:1);work (a.py:2) 5\n")
    assert "1 other rows" in imported([stacks], capsys)[1]
