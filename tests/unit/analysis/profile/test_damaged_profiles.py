"""Whatever a trace says, every analysis answers or says in one line why it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_builder import ProfileBuilder

from tracelens.analysis.profile.comm import communication
from tracelens.analysis.profile.critical import critical_path
from tracelens.analysis.profile.data import load_profile
from tracelens.analysis.profile.device import device_totals
from tracelens.analysis.profile.devices import limits_of
from tracelens.analysis.profile.flame import device_flame, host_flame
from tracelens.analysis.profile.idle import idle
from tracelens.analysis.profile.kernels import GROUPINGS, top_kernels, top_ops
from tracelens.analysis.profile.launch import launches, sync_stalls
from tracelens.analysis.profile.memory import memory
from tracelens.analysis.profile.optree import op_tree
from tracelens.analysis.profile.overview import profile_overview
from tracelens.analysis.profile.retrace import retraces
from tracelens.analysis.profile.roofline import roofline
from tracelens.analysis.profile.steps import split_steps
from tracelens.errors import TraceError
from tracelens.storage.reader import open_trace

WILD = st.sampled_from([0, 1, 7, -1, -5, 1 << 40, -(1 << 62), (1 << 62), (1 << 63) - 1])
TIMES = st.one_of(st.integers(0, 1000), WILD)
IDS = st.one_of(st.none(), st.integers(-2, 8))
TEXTS = st.sampled_from(["", "aten::mm", "ncclKernel_AllReduce", "cudaStreamSynchronize", "a;b\nc",
                         "[[2, 3], [3, 4]]", "{", "ProfilerStep#1", "(dynamo_timed)"])  # fmt: skip
ROW = st.fixed_dictionaries(
    {
        "name": TEXTS, "start_ns": TIMES, "duration_ns": TIMES, "parent_id": IDS, "op_id": IDS,
        "span_id": IDS, "corr_id": IDS, "step": st.integers(-1, 3), "text": st.none() | TEXTS,
        "kind": st.sampled_from(["kernel", "comm", "memcpy", "runtime", "python", "data", "x"]),
    }
)  # fmt: skip


def fill(build: ProfileBuilder, rows: dict[str, list[dict[str, Any]]]) -> None:
    for row in rows["ops"]:
        build.op(
            row["name"], row["start_ns"], row["start_ns"], duration_ns=row["duration_ns"],
            parent_id=row["parent_id"], step=row["step"], module=row["text"], file=row["text"],
            line=row["op_id"], in_shapes=row["text"], in_dtypes=row["text"], in_values=row["text"],
            phase=row["kind"],
        )  # fmt: skip
    for row in rows["spans"]:
        build.span(
            row["kind"], row["name"], row["start_ns"], row["start_ns"],
            duration_ns=row["duration_ns"], parent_id=row["parent_id"], op_id=row["op_id"],
            corr_id=row["corr_id"], step=row["step"],
        )  # fmt: skip
    for row in rows["kernels"]:
        build.kernel(
            row["name"], row["start_ns"], row["start_ns"], duration_ns=row["duration_ns"],
            kind=row["kind"], op_id=row["op_id"], span_id=row["span_id"], corr_id=row["corr_id"],
            step=row["step"], size_bytes=row["parent_id"], comm_ranks=row["op_id"],
            collective=row["text"], stream=row["step"],
        )  # fmt: skip
        build.memory(
            row["start_ns"], row["duration_ns"], address=row["op_id"], op_id=row["span_id"]
        )
    for number, row in enumerate(rows["spans"][:3]):
        build.event(
            "step", {"step": number, "start_ns": row["start_ns"], "duration_ns": row["duration_ns"]}
        )


@settings(max_examples=15, deadline=None)
@given(st.fixed_dictionaries({t: st.lists(ROW, max_size=6) for t in ("ops", "spans", "kernels")}))
def test_wild_rows_never_raise(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[dict[str, Any]]]
) -> None:
    build = ProfileBuilder()
    fill(build, rows)
    data = build.load(tmp_path_factory.mktemp("wild") / "run.tltrace")
    answers: list[Any] = [
        split_steps(data), split_steps(data, windows="device"), idle(data), launches(data),
        communication(data), critical_path(data), retraces(data), host_flame(data),
        device_flame(data), roofline(data, limits_of("H100")), op_tree(data, by="module"),
        *device_totals(data), *sync_stalls(data), *memory(data),
    ]  # fmt: skip
    for by in GROUPINGS:
        answers += [*top_kernels(data, by=by), *top_ops(data, by=by)]
    json.dumps([answer.as_json() for answer in answers if answer is not None])
    json.dumps(profile_overview(data))


def test_a_table_with_columns_of_unequal_length_is_told(
    build: ProfileBuilder, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.kernel("a", 0, 10)
    build.kernel("b", 20, 30)
    reader = open_trace(build.write(path))
    whole = reader.columns
    monkeypatch.setattr(
        reader, "columns",
        lambda table, names, **options: whole(table, names, **options).slice(int("name" in names)),
    )  # fmt: skip
    with pytest.raises(TraceError, match="run tracelens verify"):
        top_kernels(load_profile(reader))
