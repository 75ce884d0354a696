"""Arrow arrays by their buffers: the same values as pyarrow's own way, and no pandas."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from tracelens.storage import arrays


def test_numbers_keep_their_values_and_nulls() -> None:
    values, null = np.arange(20), np.arange(20) % 3 == 0
    for kind in (pa.int32(), pa.int64(), pa.float32(), pa.float64()):
        found = arrays.numbers(values, kind, null)
        assert found.equals(pa.array(values, mask=null).cast(kind))
        assert arrays.to_numpy(found, -1).tolist() == np.where(null, -1, values).tolist()
    assert arrays.numbers(values[::2], pa.int64()).to_pylist() == list(range(0, 20, 2))
    assert arrays.numbers(values > 9, pa.bool_()).to_pylist() == (values > 9).tolist()


def test_a_number_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(pa.ArrowInvalid):
        arrays.numbers(np.array([1 << 40]), pa.int32())


def test_texts_keep_nulls_and_survive_lone_surrogates() -> None:
    assert arrays.texts(["a", None, "", "\ud800é"]).to_pylist() == ["a", None, "", "?é"]
    coded = arrays.coded(np.array([1, -1, 0]), ["x", "y"])
    assert coded.to_pylist() == ["y", None, "x"]


def test_constants_and_rows_are_tables() -> None:
    dictionary = pa.dictionary(pa.int32(), pa.string())
    assert arrays.constant("a", dictionary, 2).to_pylist() == ["a", "a"]
    assert arrays.constant("a", pa.string(), 2).to_pylist() == ["a", "a"]
    assert arrays.constant(None, pa.int64(), 2).to_pylist() == [None, None]
    schema = pa.schema([("n", pa.int64()), ("t", pa.string()), ("d", dictionary)])
    rows = [{"n": 1, "t": "a"}, {"t": "b", "d": "c"}]
    assert arrays.table_of(rows, schema).equals(pa.Table.from_pylist(rows, schema=schema))
    assert arrays.table_of([], schema).num_rows == 0


def test_slices_and_chunks_are_read_from_where_they_start() -> None:
    whole = arrays.numbers(np.arange(10), pa.int64(), np.arange(10) == 4)
    chunks = pa.chunked_array([whole.slice(3, 3), whole.slice(9)])
    assert arrays.to_numpy(chunks).tolist() == [3, -1, 5, 9]
    assert arrays.to_numpy(pa.chunked_array([], pa.int64())).tolist() == []
    floats = arrays.to_numpy(whole, np.nan)
    assert np.isnan(floats[4]) and floats[5] == 5.0
    assert arrays.to_numpy(pa.nulls(2, pa.int32())).tolist() == [-1, -1]
    assert np.isnan(arrays.to_numpy(pa.nulls(2, pa.float32()), np.nan)).all()


def test_writing_a_trace_imports_no_pandas(tmp_path: object) -> None:
    program = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from tracelens.storage.bulk import BulkShard\n"
        "with BulkShard(Path(sys.argv[1])) as shard:\n"
        "    shard.write('counters', {'t_ns': np.arange(3), 'name': 'x', 'value': np.ones(3)})\n"
        "    shard.event('note', kind='x', message='y')\n"
        "assert 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, f"{tmp_path}/a.tltrace"], check=True)
