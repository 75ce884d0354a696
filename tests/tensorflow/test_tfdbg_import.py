"""Real tfdbg v2 dumps in every mode, imported, against TensorFlow's own reader."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow.python.debug.lib.debug_events_reader import DebugDataReader
from tfdbg_program import MODES

import tracelens as tl
from tracelens.cli import main
from tracelens.diagnosis import diagnose
from tracelens.storage.reader import open_trace

PROGRAM = Path(__file__).with_name("tfdbg_program.py")


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dumps")
    subprocess.run([sys.executable, str(PROGRAM), str(root)], check=True, timeout=300)
    return root


@pytest.fixture(scope="module")
def traces(dumps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("traces")
    for dump in dumps.iterdir():
        assert main(["import", str(dump), "-o", str(root / dump.name)]) == 0
    return root


def read(dump: Path) -> DebugDataReader:
    reader = DebugDataReader(str(dump))
    reader.update()
    return reader


def why(trace: Path) -> dict[str, Any]:
    with open_trace(trace) as reader:
        return diagnose(reader)


def line_with(text: str) -> int:
    lines = PROGRAM.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize("mode", MODES)
def test_every_traced_op_is_there_as_often_as_tensorflow_reads_it(
    dumps: Path, traces: Path, mode: str
) -> None:
    reader = read(dumps / mode)
    expected = Counter(each.op_type for each in reader.graph_execution_traces())
    expected.update(each.op_type for each in reader.executions())
    with open_trace(traces / mode) as trace:
        found = Counter(op.name for op in trace.ops())
        updates = found.pop("AssignSubVariableOp", 0)
    assert found == expected
    assert updates == (0 if mode == "NO_TENSOR" and not found else 3)


@pytest.mark.parametrize("mode", ["CONCISE_HEALTH", "FULL_HEALTH", "FULL_TENSOR"])
def test_counts_of_bad_elements_are_tensorflows(dumps: Path, traces: Path, mode: str) -> None:
    reader = read(dumps / mode)
    expected = Counter[str]()
    for each in reader.graph_execution_traces():
        value = reader.graph_execution_trace_to_tensor_value(each)
        if mode == "FULL_TENSOR":
            if np.asarray(value).dtype.kind == "f":
                expected[each.op_type] += int(np.sum(~np.isfinite(value)))
        else:
            counts = slice(2, 5) if mode == "CONCISE_HEALTH" else slice(5, 8)
            expected[each.op_type] += int(sum(each.debug_tensor_value[counts]))
    found = Counter[str]()
    with open_trace(traces / mode) as trace:
        for op in trace.ops():
            for output in op.outputs:
                if output.stats is not None and not op.name.startswith("__inference"):
                    found[op.name] += output.stats.nonfinite
    assert {k: v for k, v in found.items() if v and k in expected} == +expected


@pytest.mark.parametrize("mode", ["CURT_HEALTH", "CONCISE_HEALTH", "FULL_HEALTH", "FULL_TENSOR"])
def test_why_names_the_backward_op_at_its_forward_line(traces: Path, mode: str) -> None:
    told = why(traces / mode)
    cause = told["first_cause"]
    assert (cause["op"], cause["phase"], cause["step"]) == ("SqrtGrad", "backward", 2)
    assert cause["source"]["line"] == line_with("tf.sqrt(hidden)")
    assert cause["source"]["code"].startswith("loss = tf.reduce_mean(tf.sqrt(hidden))")
    assert told["sink"]["sink"] == "parameter"
    assert told["exact"] == (mode != "CURT_HEALTH")


def test_the_values_of_a_full_tensor_dump_are_kept(dumps: Path, traces: Path) -> None:
    reader = read(dumps / "FULL_TENSOR")
    expected = [
        reader.graph_execution_trace_to_tensor_value(each)
        for each in reader.graph_execution_traces()
        if each.op_name == "Sqrt"
    ]
    trace = tl.load(traces / "FULL_TENSOR")
    for step, value in enumerate(expected):
        assert np.array_equal(trace.tensor("Sqrt:0", step=step), value, equal_nan=True)


def test_shapes_dtypes_devices_and_inputs_are_known(traces: Path) -> None:
    with open_trace(traces / "SHAPE") as trace:
        ops = {op.name: op for op in trace.ops(step=0)}
    product = ops["MatMul"]
    assert product.outputs[0].dtype == "float32" and product.outputs[0].device == "cpu"
    relu, sqrt = ops["Relu"], ops["Sqrt"]
    assert sqrt.inputs[0].value_id == relu.outputs[0].value_id
    assert sqrt.outputs[0].shape == (5, 3)


def test_a_step_is_one_call_of_a_function(traces: Path) -> None:
    with open_trace(traces / "FULL_HEALTH") as trace:
        assert [step["step"] for step in trace.steps()] == [0, 1, 2]
        assert [step["hits"] > 0 for step in trace.steps()] == [False, False, True]


def test_a_nan_in_a_loop_is_found_in_its_body(traces: Path) -> None:
    cause = why(traces / "loop")["first_cause"]
    assert cause["op"] == "Log" and cause["source"]["line"] == line_with("tf.math.log(x)")
    assert why(traces / "loop")["sink"]["name"] == "output 0 of shrink"


def test_an_eager_nan_that_nothing_reads_is_what_the_program_read(traces: Path) -> None:
    told = why(traces / "eager")
    assert told["sink"]["sink"] == "read"
    assert told["first_cause"]["source"]["line"] == line_with("tf.sqrt(x)  #")


def test_a_circular_buffer_gives_its_last_events(traces: Path) -> None:
    told = why(traces / "circular")
    assert told["verdict"] == "non-finite" and not told["exact"]


def test_the_trace_is_the_run_not_the_import(dumps: Path, traces: Path) -> None:
    reader = read(dumps / "FULL_HEALTH")
    with open_trace(traces / "FULL_HEALTH") as trace:
        assert trace.manifest.epoch_unix_ns == pytest.approx(reader.starting_wall_time() * 1e9)
        shard = trace.shards()[0]
        ops = list(trace.ops())
    assert shard.framework == "tensorflow" and shard.state == "closed"
    assert all(0 <= op.start_ns < 300e9 for op in ops)


def test_what_is_damaged_is_told_and_the_rest_is_there(
    dumps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(dumps / "FULL_HEALTH", damaged)
    (file,) = damaged.glob("*.graph_execution_traces")
    data = bytearray(file.read_bytes())
    data[40] ^= 0xFF  # within the first record's data
    file.write_bytes(data[:-20])
    assert main(["import", str(damaged), "-o", str(tmp_path / "t"), "--json"]) == 0
    told = capsys.readouterr()
    problems = json.loads(told.out)["problems"]
    assert any("damaged, at byte 0" in problem for problem in problems)
    assert any("ends within a record" in problem for problem in problems)
    with open_trace(tmp_path / "t") as trace, open_trace(tmp_path / "t") as again:
        assert len(trace.notes()) == 3
        assert again.health().lines() == []
    assert math.isfinite(json.loads(told.out)["ops"]) and json.loads(told.out)["ops"] > 40
