"""``docs/format.md`` is true: its code reads a real trace with pandas and DuckDB alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trace_builder import training_run
from tracelens.events import OpFlag, TensorFlag
from tracelens.storage.format import RECORD_BYTES, RING_HEADER_BYTES
from tracelens.storage.tables import TABLES
from tracelens.storage.writer import ShardWriter

pytest.importorskip("pandas")

DOC = (Path(__file__).parents[3] / "docs" / "format.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOC, flags=re.MULTILINE | re.DOTALL)


def run_blocks(path: Path, checks: str) -> None:
    """Run every block of the document on a trace, in a process that cannot import tracelens."""
    guard = "import sys; sys.modules['tracelens'] = None\n"
    code = guard + f"run = {str(path)!r}\n" + "\n".join(BLOCKS) + "\n" + checks
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_document_reads_a_closed_trace(tmp_path: Path) -> None:
    path = training_run(tmp_path / "run.tltrace").close()
    run_blocks(
        path,
        "assert len(ops) == 24 and first_cause == 19, first_cause\n"
        "assert top[0][0] == 'ExpBackward0' and sum(row[3] for row in top) == 4, top\n"
        "assert list(loss_curve.loss) == [1.0, 0.5, 1 / 3]\n"
        "assert sinks[0]['name'] == 'loss' and len(segments) == 5\n",
    )


def test_the_document_reads_stored_tensors(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "run.tltrace", mode="stream", ring_bytes=1 << 16)
    record = (0, 2, 0, 1, 0, 0, 0, 0, -1, -1, 5, 7, -1, -1, -1, -1, 0, 1, 1, 0)
    writer.write(writer.reserve(), *record, 0.0, 0.0, 0.0, 0.0, 0.0, 4, 1, 0, 0, -1, 0)
    writer.event("step", step=0, start_ns=0, duration_ns=9, scalars={"loss": 2.0})
    writer.event("sink", sink="loss", name="loss", step=0, op_id=0, value_id=0)
    values = b"".join(n.to_bytes(8, "little") for n in range(6))
    writer.tensor(0, "logits", values, "int64", [2, 3], 0, 0)
    writer.close()
    run_blocks(
        tmp_path / "run.tltrace",
        "assert arrays['logits', 0].tolist() == [[0, 1, 2], [3, 4, 5]], arrays\n"
        "assert first_cause == 0\n",
    )


def test_the_document_reads_a_live_ring(tmp_path: Path) -> None:
    trace = training_run(tmp_path / "run.tltrace", steps=2)
    trace.seal()
    for _ in range(5):
        trace.op("aten::add", step=2)
    run_blocks(
        trace.path,
        "assert len(ops) == 16\n"
        "assert newest['op_id'][-5:].tolist() == [16, 17, 18, 19, 20], newest['op_id']\n"
        "assert interned[int(newest['site_id'][-1])]['op'] == 'aten::add'\n",
    )


def test_the_tables_of_the_document_are_those_of_the_format() -> None:
    for name, columns in TABLES.items():
        section = re.search(rf"^### {name}\n(.*?)(?=^###|^<!--)", DOC, re.MULTILINE | re.DOTALL)
        assert section, name
        rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (yes|) ?\| (.*) \|$", section[1], re.MULTILINE)
        types = {"dictionary": "string"}
        assert rows == [
            (c.name, types.get(c.type, c.type), "yes" if c.nullable else "", c.meaning)
            for c in columns
        ], name


def test_the_flags_of_the_document_are_those_of_the_format() -> None:
    bits = [int(bit) for bit in re.findall(r"^\| (\d+) \| ", DOC, re.MULTILINE)]
    assert bits == [flag.value for flag in OpFlag]
    assert [flag.value for flag in TensorFlag] == [1, 2, 4]
    assert "1 a parameter, 2 measured from a sample, 4 an input overwritten" in DOC


def test_the_sizes_of_the_document_are_those_of_the_format() -> None:
    assert f"a {RING_HEADER_BYTES}-byte header" in DOC
    assert f"records of {RECORD_BYTES} bytes" in DOC
