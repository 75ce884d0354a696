"""``TraceReader.columns``: whole columns, by rank and step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tracelens.errors import ConfigError
from tracelens.storage.bulk import BulkShard, Coded
from tracelens.storage.reader import open_trace


def write(path: Path, rank: int, steps: int, attempt: int = 0) -> None:
    with BulkShard(path, rank=rank, attempt=attempt) as shard:
        for step in range(steps):  # a segment a step
            shard.write(
                "kernels",
                {
                    "kern_id": np.arange(2) + 2 * step, "step": step, "kind": "kernel",
                    "name": Coded([0, 1], [f"a{rank}", "b"]), "device": 0, "stream": 7,
                    "start_ns": np.arange(2) + 100 * step, "duration_ns": np.full(2, 10 + attempt),
                },
            )  # fmt: skip


def test_columns_of_one_rank_or_of_all(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    write(path, 0, 2)
    write(path, 1, 3)
    with open_trace(path) as reader:
        both = reader.columns("kernels", ["rank", "name"])
        one = reader.columns("kernels", ["name", "start_ns"], rank=1)
        assert sorted(both["rank"].to_pylist()) == [0] * 4 + [1] * 6
        assert set(both["name"].to_pylist()) == {"a0", "a1", "b"}
        assert one.column_names == ["name", "start_ns"]
        assert one["start_ns"].to_pylist() == [0, 1, 100, 101, 200, 201]
        assert reader.columns("kernels", ["name"], rank=9).num_rows == 0
        assert reader.columns("spans", ["name"], rank=0).num_rows == 0


@pytest.mark.parametrize(
    ("steps", "starts"), [((1, 2), [100, 101]), ((2, None), [200, 201]), ((None, 1), [0, 1])]
)
def test_columns_of_some_steps(
    tmp_path: Path, steps: tuple[int | None, int | None], starts: list[int]
) -> None:
    path = tmp_path / "run.tltrace"
    write(path, 0, 3)
    with open_trace(path) as reader:
        found = reader.columns("kernels", ["start_ns"], rank=0, steps=steps)
        assert found.column_names == ["start_ns"]
        assert found["start_ns"].to_pylist() == starts


def test_attempts_of_a_rank_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    write(path, 0, 2)
    write(path, 0, 1, attempt=1)
    with open_trace(path) as reader:
        assert reader.columns("kernels", ["duration_ns"], rank=0)["duration_ns"].to_pylist() == [
            11,
            11,
        ]


def test_a_damaged_file_is_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    write(path, 0, 2)
    file = sorted(path.glob("kernels/shard=*/*.parquet"))[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with open_trace(path) as reader:
        assert reader.columns("kernels", ["start_ns"])["start_ns"].to_pylist() == [100, 101]
        assert any("checksum" in line for line in reader.health().lines())


def test_unknown_tables_and_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    write(path, 0, 1)
    with open_trace(path) as reader:
        with pytest.raises(ConfigError, match="no such table: 'nodes'"):
            reader.columns("nodes", ["name"])
        with pytest.raises(ConfigError, match="kernels has no column 'nodes'"):
            reader.columns("kernels", ["nodes"])


def test_a_trace_that_is_being_written_shows_what_is_not_sealed(tmp_path: Path) -> None:
    import tracelens as tl

    path = tmp_path / "run.tltrace"
    with tl.trace(str(path)):
        tl.step(loss=1.0)
        tl.step(loss=2.0)
        with open_trace(path) as reader:
            live = reader.columns("steps", ["step", "loss"], rank=0)
            assert set(live["loss"].to_pylist()) <= {1.0, 2.0}
    with open_trace(path) as reader:
        assert reader.columns("steps", ["loss"], rank=0)["loss"].to_pylist() == [1.0, 2.0]
