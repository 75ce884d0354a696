"""What ``why --json`` says of a whole recording."""

from __future__ import annotations

import json

import pytest
from graph import BACKWARD, DATA, OPTIMIZER, Graph

from tracelens.analysis.report import render
from tracelens.events import OpFlag

HARMLESS, CONSTANT, GARBAGE = OpFlag.HARMLESS, OpFlag.CONSTANT, OpFlag.GARBAGE
KEYS = {"verdict", "first_cause", "sink", "path", "findings", "trace"}


@pytest.fixture
def g() -> Graph:
    return Graph()


def told(g: Graph) -> dict:
    verdict = g.verdict()
    json.dumps(verdict, allow_nan=False)
    assert verdict.keys() >= KEYS
    return verdict


def test_a_clean_run_is_clean(g: Graph) -> None:
    g.op("aten::mm", g.outside(), g.outside())
    assert told(g)["verdict"] == "clean"
    assert told(g)["first_cause"] is None


def test_a_bad_sink_makes_the_run_non_finite(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    g.sink("loss", bad)
    verdict = told(g)
    assert verdict["verdict"] == "non-finite"
    assert verdict["first_cause"]["op_id"] == bad.op_id
    assert verdict["sink"]["sink"] == "loss"
    assert verdict["findings"][0].keys() == {
        "rule",
        "severity",
        "source",
        "message",
        "advice",
        "step",
    }
    assert verdict["trace"] == {"path": "test"}


def test_the_earliest_step_is_shown_first(g: Graph) -> None:
    one = g.op("aten::log", g.op("aten::mm"), nan=1)
    late = g.sink("loss", one)
    g.step = 1
    g.sink("loss", g.op("aten::exp", g.op("aten::mm"), posinf=1))
    late["step"] = 5
    assert told(g)["first_cause"]["op"] == "aten::exp"


def test_a_stored_finding_is_used_as_it_is(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    finding = g.explain(g.sink("loss", bad))
    g.events = [{"t": "finding", **finding}]
    g.forget(bad)
    assert told(g)["first_cause"]["op_id"] == bad.op_id


def test_a_masked_nan_is_told_with_what_masked_it(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=6)
    chosen = g.op("aten::where", g.outside(), bad, flags=HARMLESS)
    g.op("aten::mean", chosen)
    verdict = told(g)
    assert verdict["verdict"] == "masked"
    assert verdict["first_cause"]["op_id"] == bad.op_id
    assert verdict["hidden_by"]["op_id"] == chosen.op_id
    assert verdict["findings"][0]["severity"] == "info"


def test_bad_labels_that_are_masked_are_masked_data(g: Graph) -> None:
    y = g.op("DataLoader", phase=DATA, nan=6)
    residual = g.op("aten::sub", g.op("aten::mm"), y, nan=6)
    known = g.op("aten::isnan", residual, flags=HARMLESS)
    chosen = g.op("aten::where", known, g.outside(), residual, flags=HARMLESS)
    g.op("aten::mean", chosen)
    verdict = told(g)
    assert verdict["verdict"] == "masked"
    assert verdict["first_cause"]["phase"] == "data"
    assert verdict["hidden_by"]["op_id"] == chosen.op_id


@pytest.mark.parametrize(
    "name", ["aten::max", "aten::clamp", "aten::nan_to_num", "aten::masked_fill", "aten::index"]
)
def test_every_kind_of_mask_is_recognised(g: Graph, name: str) -> None:
    bad = g.op("aten::exp", g.op("aten::mm"), posinf=6)
    mask = g.op(name, bad, flags=HARMLESS)
    g.op("aten::mean", g.op("aten::view", mask, flags=HARMLESS))
    assert told(g)["hidden_by"]["op_id"] == mask.op_id


def test_a_checked_op_that_comes_out_finite_is_the_mask(g: Graph) -> None:
    bad = g.op("aten::exp", g.op("aten::mm"), posinf=6)
    inverse = g.op("aten::reciprocal", g.op("aten::add", bad, posinf=6))
    assert told(g)["hidden_by"]["op_id"] == inverse.op_id


def test_constants_never_make_a_run_more_than_clean(g: Graph) -> None:
    best = g.op("aten::full", posinf=1, flags=CONSTANT, shape=())
    scores = g.op("aten::masked_fill", g.op("aten::bmm"), neginf=8, flags=CONSTANT)
    shifted = g.op("aten::add", scores, g.outside(), neginf=8)
    g.op("aten::_softmax", shifted)
    g.sink("read", best)
    assert told(g)["verdict"] == "clean"


def test_a_mask_in_the_batch_is_clean(g: Graph) -> None:
    mask = g.op("DataLoader", phase=DATA, neginf=5, vmin=0.0, vmax=0.0)
    g.op("aten::_softmax", g.op("aten::add", g.outside(), mask, neginf=5))
    assert told(g)["verdict"] == "clean"


def test_uninitialised_memory_that_is_overwritten_is_clean(g: Graph) -> None:
    memory = g.op("aten::empty", nan=5, flags=GARBAGE)
    g.op("aten::copy_", memory, g.outside(), flags=OpFlag.INPLACE)
    assert told(g)["verdict"] == "clean"


def test_a_fully_masked_row_that_is_dropped_later_is_masked(g: Graph) -> None:
    scores = g.op("aten::masked_fill", g.op("aten::bmm"), neginf=32, flags=CONSTANT)
    probs = g.op("aten::_softmax", scores, nan=32)
    g.op("aten::mean", g.op("aten::nan_to_num", probs, flags=HARMLESS))
    verdict = told(g)
    assert (verdict["verdict"], verdict["first_cause"]["op_id"]) == ("masked", probs.op_id)


def handled(step: int) -> dict:
    return {
        "t": "note",
        "kind": "overflow_handled",
        "severity": "info",
        "message": "",
        "step": step,
    }


def test_an_overflow_that_the_scaler_skipped_is_clean(g: Graph) -> None:
    loss = g.op("aten::mean", g.op("aten::mm"))
    scaled = g.op("aten::mul", loss, g.outside(vmin=65536, vmax=65536))
    grad = g.op("aten::mm", scaled, posinf=4, phase=BACKWARD, dtype="float16", of=scaled)
    g.sink("gradient", grad, "0.weight")
    g.events.append(handled(0))
    assert told(g)["verdict"] == "clean"


def test_a_scaled_loss_that_overflows_is_handled_too(g: Graph) -> None:
    loss = g.op("aten::mean", g.op("aten::mm"))
    scaled = g.op("aten::mul", loss, posinf=1, code="scaler.scale(loss).backward()", shape=())
    g.sink("gradient", g.op("aten::mul", scaled, nan=1, phase=BACKWARD), "0.weight")
    g.events.append(handled(0))
    assert told(g)["verdict"] != "non-finite"


def test_a_bad_forward_is_real_even_if_the_scaler_skipped_the_step(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    g.sink("gradient", g.op("aten::mul", bad, nan=4, phase=BACKWARD), "0.weight")
    g.events.append(handled(0))
    assert told(g)["verdict"] == "non-finite"


def test_another_step_is_not_excused_by_the_scaler(g: Graph) -> None:
    g.step = 1
    grad = g.op("aten::mm", posinf=4, phase=BACKWARD, dtype="float16")
    g.sink("gradient", grad, "0.weight")
    g.events.append(handled(0))
    assert told(g)["verdict"] == "non-finite"


def test_a_killed_run_without_sinks_still_names_its_first_cause(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    g.op("aten::mul", g.op("aten::mean", bad, nan=1), nan=3, phase=BACKWARD, of=bad)
    verdict = told(g)
    assert (verdict["verdict"], verdict["first_cause"]["op_id"]) == ("non-finite", bad.op_id)
    g.events.append({"t": "step", "step": 0})
    assert told(g)["verdict"] == "masked"


def test_parameters_that_turned_bad_count_without_a_sink_event(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    grad = g.op("aten::mul", bad, nan=3, phase=BACKWARD, of=bad)
    g.op("aten::add_", g.outside(), grad, nan=3, phase=OPTIMIZER, flags=OpFlag.INPLACE)
    g.events.append({"t": "step", "step": 0})
    verdict = told(g)
    assert verdict["verdict"] == "non-finite"
    assert verdict["first_cause"]["op_id"] == bad.op_id
    assert verdict["sink"]["sink"] == "parameter"


@pytest.mark.parametrize(
    "damage",
    [
        {"first_cause": "log"},
        {"first_cause": {"op": 3}},
        {"first_cause": {"op": "log", "source": {"file": 1, "line": 2}}},
        {"path": [1]},
        {"path": [{"source": "train.py"}]},
        {"path": 5},
        {"sink": [1]},
        {"step": "x"},
        {"data": 3},
        {"hidden_by": "where"},
    ],
)
def test_a_damaged_finding_is_passed_over(g: Graph, damage: dict) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    finding = g.explain(g.sink("loss", bad))
    g.events.append({"t": "finding", **finding, **damage})
    verdict = told(g)
    assert verdict["first_cause"]["op_id"] == bad.op_id
    assert "log" in render(verdict)


@pytest.mark.parametrize(
    "damage",
    [
        {"step": None, "op_id": None, "value_id": None, "t_ns": None},
        {"stats": {"numel": 10**400, "nan": "1", "vmin": 10**400}},
        {"stats": None, "shape": None, "first_bad": None, "name": None},
        {"first_bad": [-5, 10**30], "shape": [0, -3]},
        {"doubts": [{}, 3]},
        {"doubts": 7},
    ],
)
def test_a_damaged_sink_is_still_judged(g: Graph, damage: dict) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    g.events.append({"t": "step", "step": 0, "scalars": {"loss": 10**400}})
    g.events.append({"t": "data", "step": 0, "op_id": None, "batch_size": None})
    g.events.append({**g.sink("loss", bad), **damage})
    del g.events[2]
    verdict = told(g)
    assert verdict["verdict"] in ("non-finite", "masked")
    assert render(verdict)
