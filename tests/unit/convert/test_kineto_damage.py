"""Profiles that are damaged or odd: what is wrong is named and counted, the rest is imported."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tracelens.cli import main
from tracelens.convert import kineto
from tracelens.convert.importers import name_of
from tracelens.errors import TraceError
from tracelens.storage.reader import open_trace

FIXTURES = Path(__file__).parents[3] / "fixtures" / "profiles"


def event(name: str, at: float, length: float | None = 1, **more: Any) -> dict[str, Any]:
    """Return a complete event of an op; times in µs."""
    told = {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": 1, "ts": at, **more}
    return told if length is None else {**told, "dur": length}


def text_of(*events: dict[str, Any]) -> str:
    """Return a profile's text."""
    return json.dumps({"schemaVersion": 1, "traceEvents": events})


def imported(path: Path, text: str | bytes) -> tuple[Any, list[str]]:
    """Import a text; return the reader and what is told, without the file's name."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    target = path.with_name("out.tltrace")
    result = kineto.convert(path, target, force=True)
    return open_trace(target), [line.removeprefix(f"{path}: ") for line in result.problems]


def names(reader: Any, table: str = "ops") -> list[str]:
    """Return the names of a table's rows in order of time."""
    return [name for (name,) in reader.sql(f"SELECT name FROM {table} ORDER BY start_ns, name")]


def test_a_packed_file_that_is_cut_off_gives_what_came_before(tmp_path: Path) -> None:
    whole = (FIXTURES / "cpu_stacks.pt.trace.json.gz").read_bytes()
    reader, told = imported(tmp_path / "a.json.gz", whole[: len(whole) // 3])
    assert told == [
        "the last event is cut off (1)",
        "the packed file is cut off: what came before is kept (1)",
    ]
    assert 100 < reader.count_ops() < 370


def test_a_packed_file_with_damaged_bytes_gives_what_came_before(tmp_path: Path) -> None:
    plain = text_of(*(event(f"op{i}", i, args={"x": i * 7919 % 10007}) for i in range(20000)))
    packed = bytearray(gzip.compress(plain.encode()))
    packed[len(packed) * 2 // 3] ^= 0xFF
    try:
        reader, told = imported(tmp_path / "a.json.gz", bytes(packed))
    except TraceError as error:  # the first block may be the damaged one
        assert "damaged" in str(error)
        return
    assert "damaged" in " ".join(told)
    assert reader.count_ops() <= 20000


@pytest.mark.parametrize("end", [1, 10, 60, 61, 62])
def test_a_plain_file_that_is_cut_off_loses_one_event_at_most(tmp_path: Path, end: int) -> None:
    reader, told = imported(tmp_path / "a.json", text_of(event("a", 0), event("b", 5))[:-end])
    assert names(reader)[0] == "a" and len(names(reader)) + len(told) == 2


def test_words_without_quotes_are_read_as_unknown(tmp_path: Path) -> None:
    text = text_of(
        event("a", 0, args={"Sequence number": "@", "External id": 4}),
        event("N/A nan", 5, args={"x": "@", "External id": 5}),
        event("c", 9, args={"x": "@"}),
    )
    for word in ("N/A", "NaN", "-Infinity", "nan"):
        reader, told = imported(tmp_path / "a.json", text.replace('"@"', word))
        assert names(reader) == ["a", "N/A nan", "c"]
        assert "values that are no JSON were read as unknown (3)" in told


def test_control_characters_in_names_are_spaces(tmp_path: Path) -> None:
    text = text_of(event("a@b", 0), event("c", 5))
    reader, _ = imported(tmp_path / "a.json", text.replace("@", "\x02\n"))
    assert names(reader) == ["a  b", "c"]


def test_one_broken_event_does_not_cost_the_others(tmp_path: Path) -> None:
    text = text_of(event("a", 0), event("b", 5), event("c", 9))
    broken = text.replace('"name": "b"', '"name": b"')
    reader, told = imported(tmp_path / "a.json", broken)
    assert "a" in names(reader) and len(told) >= 1
    broken = text.replace('"name": "b"', '"name" "b"')
    reader, told = imported(tmp_path / "a.json", broken)
    assert names(reader) == ["a", "c"]
    assert told == ["events cannot be read and are left out (1)"]


def test_arguments_nested_without_end_cost_one_event(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    text = text_of(event("a", 0), event("b", 5, args={"Input Dims": "@"}), event("c", 9))
    reader, told = imported(tmp_path / "a.json", text.replace('"@"', deep))
    assert {"a", "c"} <= set(names(reader)) and len(told) <= 1


def test_bytes_that_are_no_text_do_not_stop_the_import(tmp_path: Path) -> None:
    text = text_of(event("a", 0), event("b@", 5), event("c", 9)).encode()
    reader, told = imported(tmp_path / "a.json", text.replace(b"@", b"\xff\xfe"))
    assert (names(reader), told) == (["a", "b??", "c"], [])


def test_events_at_impossible_times_are_left_out(tmp_path: Path) -> None:
    at = 1_712_195_495_519_689
    events = [event(f"op{i}", at + i) for i in range(9)]
    odd = [event("zero", 0.0), event("past", -5), event("far", 1e18), event("none", 0)]
    del odd[3]["ts"]
    long = [event("long", at, 1e15), event("negative", at + 3, -4), event("short", at + 4, None)]
    reader, told = imported(tmp_path / "a.json", text_of(*events, *odd, *long))
    assert names(reader) == ["op0", "op1", "op2", "op3", "op4", "short", "op5", "op6", "op7", "op8"]
    assert sorted(told) == [
        "events at an impossible time (0, or a day from the others) are left out (2)",
        "events have no time and are left out (2)",
        "events of an impossible duration (below 0, or above a day) are left out (2)",
        "events without a duration count as 0 ns (1)",
    ]


def test_numbers_as_texts_and_texts_as_numbers_are_read(tmp_path: Path) -> None:
    odd = event("a", 0, pid="1", tid="thread-x", args={"External id": "7", "Call stack": 5})
    odd |= {"ts": "5.5", "dur": "2"}
    reader, _ = imported(
        tmp_path / "a.json", text_of(event("b", 9), odd, event("c", 10) | {"name": 5})
    )
    found = reader.sql("SELECT name, start_ns, duration_ns FROM ops ORDER BY start_ns")
    assert [tuple(row) for row in found] == [("a", 0, 2000), ("b", 3500, 1000), ("5", 4500, 1000)]


def test_threads_of_any_name_get_numbers_of_their_own(tmp_path: Path) -> None:
    events = [
        event("a", 0, 9, pid="Spans", tid="x"), event("b", 1, pid="Spans", tid="y"),
        event("c", 2, pid=5, tid=1 << 40), event("d", 3, tid=7), event("e", 4, pid=9, tid=7),
        event("f", 5, pid=None, tid=None),
    ]  # fmt: skip
    reader, told = imported(tmp_path / "a.json", text_of(*events))
    tids = [tid for (tid,) in reader.sql("SELECT tid FROM ops ORDER BY start_ns")]
    assert told == [] and len(set(tids)) == 6 and tids[3] == 7
    assert reader.sql("SELECT count(parent_id) FROM ops")[0][0] == 0


def test_begins_and_ends_are_paired_by_thread_and_name(tmp_path: Path) -> None:
    def half(phase: str, name: str, at: float, tid: int = 1) -> dict[str, Any]:
        return {"ph": phase, "name": name, "pid": 1, "tid": tid, "ts": at}

    halves = [
        half("B", "outer", 0), half("B", "inner", 2), half("E", "inner", 4), half("E", "", 8),
        half("E", "never", 9), half("B", "crossed", 10), half("B", "over", 11),
        half("E", "crossed", 13), half("E", "over", 14), half("B", "open", 20),
        half("B", "other", 0, 2), half("E", "other", 30, 2),
    ]  # fmt: skip
    reader, told = imported(tmp_path / "a.json", json.dumps(halves))
    found = reader.sql("SELECT name, start_ns, duration_ns FROM spans ORDER BY tid, span_id")
    assert [tuple(row) for row in found] == [
        ("outer", 0, 8000), ("inner", 2000, 2000), ("crossed", 10000, 3000), ("over", 11000, 2000),
        ("open", 20000, 0), ("other", 0, 30000),
    ]  # fmt: skip
    assert told == [
        "ends of ranges that never began are left out (2)",
        "ranges that never end are ended with their thread (1)",
        "ranges end in another order than they began (1)",
    ]


def test_ranges_that_cross_are_beside_each_other(tmp_path: Path) -> None:
    reader, _ = imported(tmp_path / "a.json", text_of(event("a", 0, 10), event("b", 5, 10)))
    assert reader.sql("SELECT count(parent_id) FROM ops")[0][0] == 0


def test_lists_of_objects_in_arguments_do_not_look_like_events(tmp_path: Path) -> None:
    inner = [{"name": f"n{i}", "ts": 5} for i in range(50)]
    events = [event(f"op{i}", i, args={"kwargs": inner, "x": '},{"ph":'}) for i in range(300)]
    reader, told = imported(tmp_path / "a.json", text_of(*events))
    assert (reader.count_ops(), told) == (300, [])


def test_a_list_whose_events_begin_with_arguments_is_known(tmp_path: Path) -> None:
    text = json.dumps([{"args": {"a": {"b": 1}}, **event("a", 0)}])
    reader, _ = imported(tmp_path / "a.json", "\ufeff" + text)
    assert names(reader) == ["a"] and name_of(tmp_path / "a.json") == "kineto"


def test_hundreds_of_thousands_of_metadata_events_cost_nothing(tmp_path: Path) -> None:
    meta = '{"ph":"M","name":"process_name","pid":1,"tid":0,"ts":0,"args":{"name":"x"}}'
    text = f'{{"traceEvents":[{",".join([meta] * 310_000)},{json.dumps(event("a", 5e8))}]}}'
    reader, told = imported(tmp_path / "a.json", text)
    assert (names(reader), told, reader.manifest.epoch_unix_ns) == (["a"], [], 500_000_000_000)


def test_lists_without_an_end_and_kinds_not_known_are_told(tmp_path: Path) -> None:
    asynchronous = {"ph": "b", "cat": "x", "id": 1, "name": "n", "ts": 4, "pid": 1, "tid": 1}
    listed = json.dumps([event("a", 0), asynchronous, event("b", 5)])
    for end in ("", ",", " ,\n", "]"):
        reader, told = imported(tmp_path / "a.json", listed[:-1] + end)
        assert names(reader) == ["a", "b"]
        assert told == ["events of the kind 'b' are not imported (1)"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"traceEvents": [', "holds no event"),
        ('{"schema": "1.0", "nodes": [1]}', "Chakra"),
        ('{"traceEvents": [], "schemaVersion": 1}', "holds no event"),
        ('{"traceEvents": null, "schemaVersion": 1}', "no array of events"),
        ("", "not a recording"),
        ('{"a": [1, 2, 3]}', "not a recording"),
        ("[1, 2, 3]", "not a recording"),
        ("\x1f\x8b\x08broken", "not a recording"),
    ],
)
def test_a_file_without_events_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    importer = ["--from", "kineto"] if "Chakra" in told else []
    assert main(["import", str(path), *importer, "-o", str(tmp_path / "out.tltrace")]) == 3
    error = capsys.readouterr().err.strip()
    assert told in error and "\n" not in error
    assert not (tmp_path / "out.tltrace").exists()


def test_a_bad_file_among_good_ones_is_named_and_the_rest_imported(tmp_path: Path) -> None:
    good, bad = tmp_path / "rank0.json", tmp_path / "rank1.json"
    good.write_text(text_of(event("a", 0)))
    bad.write_text('{"foreign": 1}')
    target = tmp_path / "out.tltrace"
    result = kineto.convert_files([bad, good], target)
    assert result.ops == 1
    assert result.problems == (
        f'{bad}: no Chrome trace: it has no array of events ("traceEvents")',
    )
