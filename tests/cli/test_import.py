"""``tracelens import``: what is no recording, or a damaged one, is told in a line."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tracelens.cli import main
from tracelens.convert.crc32c import crc32c, masked
from tracelens.storage.reader import open_trace


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def field(number: int, value: int | float | str | bytes) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def record(data: bytes) -> bytes:
    head = struct.pack("<Q", len(data))
    checks = [struct.pack("<I", masked(crc)) for crc in crc32c([head, data])]
    return head + checks[0] + data + checks[1]


def event(number: int, body: bytes, at: float = 1000.0) -> bytes:
    return record(field(1, at) + field(number, body))


def execution(op: str, outputs: list[int], nan: int, inputs: tuple[int, ...] = ()) -> bytes:
    """An eager op in mode CONCISE_HEALTH with one output of 4 elements."""
    health = struct.pack("<5d", -1, 4, 0, 0, nan)
    tensor = field(1, 2) + field(2, field(2, field(1, 5))) + field(4, health)
    body = field(1, op) + field(6, 3) + field(7, tensor)
    body += b"".join(field(4, number) for number in inputs)
    body += b"".join(field(5, number) for number in outputs)
    return body + field(8, field(2, "frame"))


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A dump of one line of a program with two eager ops, the second of which reads the first."""
    folder = tmp_path / "dump"
    folder.mkdir()
    name = folder / "tfdbg_events.1.host"
    files = {
        "metadata": [event(3, field(1, "2.99") + field(2, "debug.Event:1") + field(3, "id"))],
        "source_files": [
            event(4, field(1, "/home/me/train.py") + field(2, "worker") + field(3, "y = sqrt(x)"))
        ],
        "stack_frames": [
            event(6, field(1, "frame") + field(2, field(1, 0) + field(2, 1) + field(4, "main")))
        ],
        "graphs": [],
        "execution": [
            event(9, execution("Sqrt", [7], 3), 1001.0),
            event(9, execution("Neg", [8], 3, (7,)), 1002.0),
        ],
        "graph_execution_traces": [],
    }
    for kind, events in files.items():
        Path(f"{name}.{kind}").write_bytes(b"".join(events))
    return folder


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: object) -> Done:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


def test_a_dump_becomes_a_trace_whose_cause_is_told(run: Any, dump: Path, tmp_path: Path) -> None:
    done = run("import", dump, "-o", tmp_path / "t.tltrace")
    assert (done.code, done.out) == (0, f"{tmp_path / 't.tltrace'}\n")
    assert "2 ops" in done.err
    why = run("why", tmp_path / "t.tltrace", "--json")
    cause = json.loads(why.out)["first_cause"]
    assert why.code == 1
    assert (cause["op"], cause["source"]["code"]) == ("Sqrt", "y = sqrt(x)")
    assert run("verify", tmp_path / "t.tltrace").code == 0
    with open_trace(tmp_path / "t.tltrace") as trace:
        assert trace.manifest.epoch_unix_ns == 1000 * 10**9
        assert [op.start_ns for op in trace.ops()] == [10**9, 2 * 10**9]


def test_a_trace_is_only_replaced_when_asked(run: Any, dump: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.tltrace"
    assert run("import", dump, "-o", target).code == 0
    again = run("import", dump, "-o", target)
    assert again.code == 2 and "--force" in again.err and len(again.err.splitlines()) == 1
    assert run("import", dump, "-o", target, "--force").code == 0


@pytest.mark.parametrize("there", [None, "empty", "file", "other"])
def test_what_is_no_recording_is_told_in_a_line(
    run: Any, tmp_path: Path, there: str | None
) -> None:
    path = tmp_path / "thing"
    if there == "file":
        path.write_bytes(b"\0" * 100)
    elif there is not None:
        path.mkdir()
        if there == "other":
            (path / "events.out.tfevents").write_bytes(b"x")
    done = run("import", path, "-o", tmp_path / "t")
    assert done.code == 3 and done.out == ""
    assert len(done.err.splitlines()) == 1 and "Traceback" not in done.err
    assert not (tmp_path / "t").exists()


def test_a_file_that_only_looks_like_a_dump_is_refused(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    folder.mkdir()
    (folder / "a.metadata").write_text("hello, this is not it")
    done = run("import", folder, "-o", tmp_path / "t")
    assert done.code == 3 and "metadata" in done.err and len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["dump"]


@pytest.mark.parametrize("keep", [0, 5, 30, -7])
def test_a_torn_file_gives_what_is_whole(run: Any, dump: Path, tmp_path: Path, keep: int) -> None:
    (file,) = dump.glob("*.execution")
    file.write_bytes(file.read_bytes()[:keep])
    done = run("import", dump, "-o", tmp_path / "t", "--json")
    told = json.loads(done.out) if done.code == 0 else {"ops": 0, "problems": [done.err]}
    assert done.code == (3 if keep in (5, 30) else 0)
    assert told["ops"] == (1 if keep < 0 else 0)
    assert bool(told["problems"]) == (keep != 0)


def test_dumps_of_two_runs_in_a_folder_are_refused(run: Any, dump: Path, tmp_path: Path) -> None:
    other = event(3, field(1, "2.99") + field(3, "another"))
    (dump / "tfdbg_events.2.host.metadata").write_bytes(other)
    done = run("import", dump, "-o", tmp_path / "t")
    assert done.code == 3 and "several runs" in done.err


def test_a_damaged_message_is_left_out(run: Any, dump: Path, tmp_path: Path) -> None:
    (file,) = dump.glob("*.execution")
    wrong = [
        record(b"\xff" * 30),
        event(9, b"\x0a\x7fshort"),
        event(9, field(6, 4) + field(7, b"\x22\x03abc")),
    ]
    file.write_bytes(b"".join(wrong) + file.read_bytes())
    done = run("import", dump, "-o", tmp_path / "t", "--json")
    told = json.loads(done.out)
    assert done.code == 0 and told["ops"] == 2 and len(told["problems"]) == 3
