"""Tables of a trace as frames."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tracelens as tl
from plots_traces import hostile, wide
from tracelens.errors import ConfigError
from tracelens.loaded import Trace
from tracelens.storage.sql import QueryRefused

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trace]:
    path = wide(tmp_path_factory.mktemp("frames") / "run.tltrace", steps=20, modules=10)
    with tl.load(path) as loaded:
        yield loaded


def test_ops_are_a_pandas_frame_with_the_columns_of_the_format(trace: Trace) -> None:
    frame = trace.ops.to_pandas()

    assert len(frame) == 200
    assert tuple(frame.columns) == trace.table("ops").columns
    assert frame.op_id.tolist() == list(range(200))
    assert frame.groupby("step", observed=True).l2.count().tolist() == [10] * 20


def test_of_a_large_trace_only_what_is_named_is_read(trace: Trace) -> None:
    some = trace.ops.to_pandas(["op_id", "nan_count"], where="nan_count > 0 AND name LIKE 'aten%'")
    two = trace.ops.to_polars(["step", "module"], steps=(3, 5))
    one = trace.ops.of(step=4).to_arrow(["step"])

    assert some.values.tolist() == [[199, 3]]
    assert two.shape == (20, 2)
    assert two["step"].unique().sort().to_list() == [3, 4]
    assert one.column("step").to_pylist() == [4] * 10


def test_every_table_is_a_frame_in_all_three_libraries(trace: Trace) -> None:
    for name in ("ops", "steps", "events", "stats", "kernels", "shards", "segments"):
        table = trace.table(name)
        arrow = table.to_arrow()
        assert tuple(arrow.column_names) == table.columns
        assert arrow.num_rows == len(table.to_pandas()) == table.to_polars().height == len(table)
    assert trace.table("steps").to_pandas().loss.isna().sum() == 1


def test_a_condition_gives_the_types_that_a_plain_read_gives(trace: Trace) -> None:
    plain = trace.table("ops").to_arrow()
    conditioned = trace.table("ops").to_arrow(where="true")

    assert plain.schema.types == conditioned.schema.types
    assert plain.to_pylist() == conditioned.to_pylist()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConfigError, {"columns": ["nme"]}),
        (ConfigError, {"columns": "name"}),
        (ConfigError, {"steps": 3}),
        (ConfigError, {"steps": ("a", 2)}),
        (QueryRefused, {"where": "nme > 3"}),
        (QueryRefused, {"where": "1 = 1; SELECT 2"}),
        (QueryRefused, {"where": "1 = 1) -- "}),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    trace: Trace, error: type[Exception], words: dict[str, object]
) -> None:
    with pytest.raises(error) as raised:
        trace.ops.to_arrow(**words)  # type: ignore[arg-type]
    assert len(str(raised.value).splitlines()) == 1


def test_a_table_that_is_none_is_told_with_those_that_are(trace: Trace) -> None:
    with pytest.raises(ConfigError, match="no table 'kernel': choose from ops, "):
        trace.table("kernel")


def test_without_the_library_a_line_says_what_to_install(tmp_path: Path) -> None:
    path = hostile(tmp_path / "run.tltrace")
    program = (
        "import sys; sys.modules['polars'] = None\n"
        "import tracelens as tl\n"
        f"try: tl.load({str(path)!r}).ops.to_polars()\n"
        "except tl.ConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "this needs polars: pip install polars\n"
