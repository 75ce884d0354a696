"""Ring records become rows: ids, statistics, strings, and what a damaged record turns into."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tracelens.events import OpFlag, Phase, RecordKind
from tracelens.storage.encode import Encoder, complete_length
from tracelens.storage.format import RECORD
from tracelens.storage.ring import Records
from tracelens.storage.tables import TABLES, arrow_schema

TENSOR = ["float32", [2, 3], "cpu"]
STRINGS: dict[int, tuple[str, Any]] = {
    1: ("site", {"op": "aten::mm", "module": "a.b", "file": "f.py", "line": 7, "function": "f",
                 "code": "x @ y"}),
    2: ("site", {"op": "aten::add"}),
    3: ("layout", {"in": [TENSOR, None], "out": [["float16", [4], "cuda:0"]]}),
    4: ("tensor", TENSOR),
}  # fmt: skip


def records(*rows: dict[str, Any]) -> Records:
    made = np.zeros(len(rows), dtype=RECORD)
    made["parent_id"] = made["fwd_op_id"] = made["duration_ns"] = made["zero"] = -1
    made["in_ids"] = -1
    for index, row in enumerate(rows):
        for name, value in {"site_id": 1, "seq": index + 1, **row}.items():
            made[name][index] = value
    return made


def rows(made: Records, table: str = "ops") -> list[dict[str, Any]]:
    result = Encoder(0, lambda: STRINGS).tables(made)[table]
    assert result.schema == arrow_schema(table)
    result.validate(full=True)
    return result.to_pylist()


def test_an_op_gets_the_strings_of_its_site_and_layout() -> None:
    (row,) = rows(records({"layout_id": 3, "phase": Phase.BACKWARD}))
    assert {k: row[k] for k in ("name", "module", "file", "line", "function", "code")} == {
        "name": "aten::mm", "module": "a.b", "file": "f.py", "line": 7, "function": "f",
        "code": "x @ y",
    }  # fmt: skip
    assert (row["phase"], row["device"]) == ("backward", "cuda:0")
    assert (row["shapes"], row["dtypes"]) == ("[[4]]", '["float16"]')
    assert (row["in_shapes"], row["in_dtypes"]) == ("[[2,3],null]", '["float32",null]')


def test_unknown_strings_are_null_and_an_unknown_op_is_a_question_mark() -> None:
    for site in (0, 3, 99, -5):
        (row,) = rows(records({"site_id": site}))
        assert (row["name"], row["module"], row["file"], row["line"]) == ("?", None, None, None)


def test_rows_are_sorted_by_op_id() -> None:
    made = rows(records({"op_id": 5}, {"op_id": 2}, {"op_id": 9}))
    assert [row["op_id"] for row in made] == [2, 5, 9]


def test_inputs_past_the_fourth_come_from_their_own_records_in_order() -> None:
    made = records(
        {"op_id": 3, "n_in": 1, "in_ids": [70, -1, -1, -1]},
        {"op_id": 4, "n_in": 10, "in_ids": [1, 2, 3, 4]},
        {"kind": RecordKind.INPUTS, "op_id": 4, "in_ids": [5, 6, 7, 8]},
        {"kind": RecordKind.INPUTS, "op_id": 4, "in_ids": [9, 10, 77, 77]},
        {"kind": RecordKind.INPUTS, "op_id": 50, "in_ids": [9, 10, 77, 77]},
        {"op_id": 5, "n_in": 6, "in_ids": [1, 2, 3, 4]},
    )
    assert [row["in_ids"] for row in rows(made)] == [
        [70], list(range(1, 11)), [1, 2, 3, 4, -1, -1]
    ]  # fmt: skip


def test_outputs_have_ids_of_their_op_and_slot_and_a_view_its_bases() -> None:
    made = records(
        {"op_id": 2, "n_out": 0},
        {"op_id": 3, "n_out": 2, "value_id": 48},
        {"op_id": 4, "n_out": 2, "value_id": 48, "flags": OpFlag.VIEW},
        {"op_id": 5, "n_out": 18, "value_id": 80},
    )
    ids = [row["out_ids"] for row in rows(made)]
    assert ids[:3] == [[], [48, 49], [48, 48]]
    assert ids[3] == [80 + min(slot, 15) for slot in range(18)]


def test_a_statistic_that_was_not_computed_is_null_and_never_nan() -> None:
    made = records(
        {"op_id": 1},
        {"op_id": 2, "stat_level": 1, "numel": 6, "nan": 2, "posinf": 1, "neginf": 3},
        {"op_id": 3, "stat_level": 2, "numel": 6, "vmin": np.nan, "vmax": 2.0, "zero": 4},
    )
    none, counts, full = rows(made)
    assert none["numel"] is None and none["vmin"] is None
    assert (counts["nan_count"], counts["inf_count"], counts["neginf_count"]) == (2, 4, 3)
    assert counts["vmax"] is None and counts["zero_count"] is None
    assert full["vmin"] is None and full["vmax"] == 2.0 and full["zero_count"] == 4


def test_ord_counts_from_the_first_op_of_the_step_over_several_batches() -> None:
    encoder = Encoder(0, lambda: STRINGS)
    first = encoder.tables(records({"op_id": 10}, {"op_id": 11}))["ops"]
    second = encoder.tables(records({"op_id": 12}, {"op_id": 13, "step": 1}))["ops"]
    assert first["ord"].to_pylist() == [0, 1]
    assert second["ord"].to_pylist() == [2, 0]


def test_statistics_rows_name_role_slot_tensor_and_bad_places() -> None:
    made = records(
        {"kind": RecordKind.STAT, "op_id": 8, "layout_id": 4, "n_in": 1, "n_out": 2,
         "value_id": 33, "stat_level": 2, "nan": 1, "numel": 6, "in_ids": [5, 0, -1, -1]},
    )  # fmt: skip
    (row,) = rows(made, "stats")
    assert (row["role"], row["slot"], row["value_id"]) == ("in", 2, 33)
    assert (row["dtype"], row["shape"], row["device"]) == ("float32", "[2,3]", "cpu")
    assert row["first_bad"] == [5, 0]


def test_sources_are_listed_once() -> None:
    encoder = Encoder(3, lambda: STRINGS)
    assert encoder.sources().to_pylist() == [
        {"src_id": 1, "rank": 3, "file": "f.py", "line": 7, "function": "f", "code": "x @ y"}
    ]
    assert encoder.sources(1).num_rows == 0


def test_random_bytes_as_records_become_rows_without_an_error() -> None:
    random = np.random.default_rng(0)
    made = np.frombuffer(random.bytes(RECORD.itemsize * 2000), dtype=RECORD).copy()
    made["kind"] %= 4
    for table in Encoder(0, lambda: STRINGS).tables(made).values():
        table.validate(full=True)


def test_damaged_strings_become_nulls() -> None:
    strings: dict[int, tuple[str, Any]] = {
        1: ("site", {"op": 5, "line": "x", "file": ["a"], "code": "\ud800"}),
        2: ("layout", {"in": 4, "out": [1, ["float32"], None]}),
        3: ("tensor", []),
    }
    made = records({"layout_id": 2}, {"kind": RecordKind.STAT, "layout_id": 3})
    tables = Encoder(0, lambda: strings).tables(made)
    assert tables["ops"]["shapes"].to_pylist() == ["[null,null,null]"]
    assert tables["stats"]["dtype"].to_pylist() == [None]
    pa.Table.validate(tables["ops"], full=True)


@pytest.mark.parametrize(
    ("kinds", "n_in", "whole"),
    [
        ("O O O", (1, 1, 1), 3),
        ("O W I", (1, 6, 0), 3),
        ("O W O", (1, 6, 1), 1),
        ("O W I O", (1, 10, 0, 1), 1),
        ("I", (0,), 0),
    ],
)
def test_a_batch_ends_before_the_first_unfinished_op(
    kinds: str, n_in: tuple[int, ...], whole: int
) -> None:
    kind = {"O": RecordKind.OP, "W": RecordKind.OP, "I": RecordKind.INPUTS}
    made = records(
        *(
            {"kind": kind[letter], "n_in": n, "op_id": 1 if letter in "WI" else 10 + index}
            for index, (letter, n) in enumerate(zip(kinds.split(), n_in, strict=True))
        )
    )
    assert complete_length(made) == whole


def test_every_table_has_distinct_columns_and_no_shard_column() -> None:
    for name, columns in TABLES.items():
        names = [column.name for column in columns]
        assert len(set(names)) == len(names)
        assert ("shard" in names) == (name in ("shards", "segments"))
