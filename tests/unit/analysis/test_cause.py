"""The definitions of origin, propagation, masking and sinks, one graph each."""

from __future__ import annotations

import json

import pytest
from graph import BACKWARD, DATA, FORWARD, OPTIMIZER, Graph, Value

from tracelens.events import OpFlag, Phase

HARMLESS, CONSTANT, GARBAGE, INPLACE = (
    OpFlag.HARMLESS,
    OpFlag.CONSTANT,
    OpFlag.GARBAGE,
    OpFlag.INPLACE,
)


@pytest.fixture
def g() -> Graph:
    return Graph()


def blamed(g: Graph, kind: str, value: Value, name: str = "") -> dict:
    finding = g.explain(g.sink(kind, value, name))
    json.dumps(finding, allow_nan=False)
    return finding


def test_a_nan_from_finite_inputs_is_blamed_on_the_op_that_made_it(g: Graph) -> None:
    x = g.op("aten::mm", g.outside(), g.outside(parameter=True))
    bad = g.op("aten::log", x, nan=3)
    loss = g.op("aten::mean", bad, nan=1, shape=())
    finding = blamed(g, "loss", loss)
    assert finding["first_cause"]["op_id"] == bad.op_id
    assert finding["first_cause"]["kind"] == "nan"
    assert finding["first_cause"]["phase"] == "forward"
    assert finding["exact"] is True
    assert finding["severity"] == "error"


def test_a_computed_inf_is_blamed_before_the_nan_it_makes(g: Graph) -> None:
    x = g.op("aten::mm", g.outside(), g.outside())
    inf = g.op("aten::exp", x, posinf=2)
    nan = g.op("aten::div", inf, inf, nan=2)
    finding = blamed(g, "loss", nan)
    assert finding["first_cause"]["op_id"] == inf.op_id
    assert finding["first_cause"]["kind"] == "inf"
    assert finding["kind"] == "nan"


def test_a_constant_inf_is_not_blamed_but_the_nan_made_of_it(g: Graph) -> None:
    scores = g.op("aten::bmm", g.outside(), g.outside())
    masked = g.op("aten::masked_fill", scores, neginf=8, flags=CONSTANT)
    probs = g.op("aten::_softmax", masked, nan=8)
    finding = blamed(g, "loss", g.op("aten::mean", probs, nan=1, shape=()))
    assert finding["first_cause"]["op_id"] == probs.op_id
    assert finding["rule"] == "fully-masked-row"
    assert finding["exact"] is True


def test_a_mask_from_outside_is_a_constant(g: Graph) -> None:
    mask = g.outside(neginf=8, vmin=0.0, vmax=0.0)
    scores = g.op("aten::bmm", g.outside(), g.outside())
    added = g.op("aten::add", scores, mask, neginf=8)
    probs = g.op("aten::_softmax", added, nan=8)
    assert blamed(g, "loss", probs)["first_cause"]["op_id"] == probs.op_id


def test_a_computed_inf_wins_over_a_constant_one(g: Graph) -> None:
    masked = g.op("aten::masked_fill", g.outside(), neginf=8, flags=CONSTANT)
    inf = g.op("aten::exp", g.op("aten::mm", g.outside()), posinf=1)
    nan = g.op("aten::add", masked, inf, nan=1)
    assert blamed(g, "loss", nan)["first_cause"]["op_id"] == inf.op_id


def test_an_overflow_among_masked_scores_is_still_found(g: Graph) -> None:
    masked = g.op("aten::masked_fill", g.outside(), neginf=8, flags=CONSTANT)
    born = g.op("aten::mul", masked, neginf=8, posinf=2)
    probs = g.op("aten::_softmax", born, nan=8)
    assert blamed(g, "loss", probs)["first_cause"]["op_id"] in (born.op_id, probs.op_id)
    only_inf = blamed(g, "loss", g.op("aten::sum", born, posinf=1, shape=()))
    assert only_inf["first_cause"]["op_id"] == born.op_id


def test_bad_data_is_named_with_its_batch_and_samples(g: Graph) -> None:
    x = g.op("DataLoader", phase=DATA, nan=1, first_bad=(17,), shape=(4, 8))
    g.events.append(
        {
            "t": "data",
            "step": 0,
            "op_id": x.op_id,
            "loader": "DataLoader",
            "batch_index": 3,
            "batch_size": 4,
            "sample_indices": [90, 91, 92, 93],
        }
    )
    h = g.op("aten::mm", x, g.outside(), nan=4)
    finding = g.explain(g.sink("loss", h), data=g.events[:1])
    assert finding["first_cause"]["phase"] == "data"
    assert finding["data"]["batch_index"] == 3
    assert finding["data"]["samples"] == [2]
    assert finding["data"]["sample_indices"] == [92]


def test_an_op_that_prepares_data_is_blamed_itself(g: Graph) -> None:
    raw = g.op("aten::stack", g.outside(), phase=DATA)
    scaled = g.op("aten::div", raw, raw, nan=1, phase=DATA)
    first = blamed(g, "loss", g.op("aten::mm", scaled, nan=4))["first_cause"]
    assert first["op_id"] == scaled.op_id
    assert first["phase"] == "data"
    assert first["origin"] == "op"


def test_a_collate_function_of_this_process_is_blamed_before_the_loader(g: Graph) -> None:
    raw = g.op("aten::stack", g.outside(), g.outside())
    scaled = g.op("aten::div", raw, raw, nan=1)
    batch = g.op("DataLoader", scaled, phase=DATA, nan=1)
    first = blamed(g, "loss", g.op("aten::mm", batch, nan=4))["first_cause"]
    assert first["op_id"] == scaled.op_id


def test_what_a_collate_function_only_stacks_is_the_loaders(g: Graph) -> None:
    stacked = g.op("aten::stack", g.outside(), g.outside(nan=1), nan=1, flags=HARMLESS)
    batch = g.op("DataLoader", stacked, phase=DATA, nan=1)
    finding = blamed(g, "loss", g.op("aten::mm", batch, nan=4))
    assert finding["first_cause"]["op_id"] == batch.op_id
    assert finding["rule"] == "bad-data"


def test_an_op_outside_any_phase_is_told_as_forward(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1, phase=Phase.OTHER)
    assert blamed(g, "read", bad)["first_cause"]["phase"] == "forward"


def test_values_read_from_a_file_are_data_of_that_line(g: Graph) -> None:
    read = g.op("aten::set_", phase=DATA, nan=1)
    finding = blamed(g, "loss", g.op("aten::mm", read, nan=4))
    assert finding["first_cause"]["phase"] == "data"
    assert "batch" not in finding["first_cause"]["why"]


def test_the_mean_of_nothing_is_its_own_cause(g: Graph) -> None:
    nothing = g.outside(shape=(0, 8), vmin=None, vmax=None)
    unmeasured = Value(nothing.record.__class__(shape=(0, 8), dtype="float32"))
    finding = blamed(g, "loss", g.op("aten::mean", unmeasured, nan=1, shape=()))
    assert finding["rule"] == "empty-reduction"
    assert finding["exact"] is True


def test_a_value_without_a_producer_is_data(g: Graph) -> None:
    h = g.op("aten::mm", g.outside(nan=1), g.outside(), nan=4)
    finding = blamed(g, "loss", h)
    assert finding["first_cause"]["phase"] == "data"
    assert finding["first_cause"]["op_id"] == h.op_id
    assert finding["exact"] is True


def test_running_statistics_are_not_blamed_for_the_batch_that_spoiled_them(g: Graph) -> None:
    x = g.op("aten::div", g.outside(), g.outside(), nan=4)
    statistics = (g.outside(nan=4), g.outside(nan=4))
    y = g.op("aten::native_batch_norm", x, g.outside(), g.outside(), *statistics, nan=8)
    assert blamed(g, "loss", y)["first_cause"]["op_id"] == x.op_id


def test_running_statistics_that_came_in_bad_are_blamed(g: Graph) -> None:
    x = g.op("aten::div", g.outside(), g.outside())
    statistics = (g.outside(nan=4), g.outside(nan=4))
    y = g.op("aten::native_batch_norm", x, g.outside(), g.outside(), *statistics, nan=8)
    assert blamed(g, "loss", y)["first_cause"]["op_id"] == y.op_id


def test_an_outside_inf_among_varied_values_is_data_not_a_mask(g: Graph) -> None:
    x = g.outside(posinf=1, vmin=-3.0, vmax=4.0)
    centred = g.op("aten::sub", x, g.op("aten::mean", x, posinf=1), nan=1)
    assert blamed(g, "loss", centred)["rule"] == "bad-outside-value"


def test_a_parameter_that_came_in_bad_is_said_to_have(g: Graph) -> None:
    h = g.op("aten::mm", g.outside(), g.outside(nan=2, parameter=True), nan=4)
    finding = blamed(g, "loss", h)
    assert finding["rule"] == "bad-parameter"
    assert finding["first_cause"]["origin"] == "parameter"


def test_a_bad_parameter_is_followed_into_the_optimizer_that_wrote_it(g: Graph) -> None:
    x = g.op("aten::mm", g.outside(), g.outside())
    inf = g.op("aten::exp", x, posinf=1)
    grad = g.op("aten::mul", inf, x, nan=2, phase=BACKWARD, of=inf)
    weight = g.op("aten::add_", g.outside(), grad, nan=2, phase=OPTIMIZER, flags=INPLACE)
    g.step = 1
    h = g.op("aten::mm", g.outside(), weight, nan=4)
    finding = blamed(g, "loss", h)
    assert finding["first_cause"]["op_id"] == inf.op_id
    assert finding["first_cause"]["step"] == 0
    assert finding["step"] == 1
    assert [entry["op_id"] for entry in finding["path"]] == [
        inf.op_id,
        grad.op_id,
        weight.op_id,
        h.op_id,
    ]


def test_a_zero_by_zero_in_the_optimizer_is_blamed_there(g: Graph) -> None:
    moment = g.op("aten::lerp_", g.outside(), phase=OPTIMIZER, flags=INPLACE)
    root = g.op("aten::add", g.outside(), phase=OPTIMIZER, vmin=0.0, vmax=0.2, dtype="float16")
    weight = g.op(
        "aten::addcdiv_",
        g.outside(dtype="float16"),
        moment,
        root,
        nan=8,
        phase=OPTIMIZER,
        flags=INPLACE,
        dtype="float16",
    )
    finding = blamed(g, "parameter", weight, "0.weight")
    assert finding["first_cause"]["op_id"] == weight.op_id
    assert finding["first_cause"]["phase"] == "optimizer"
    assert finding["rule"] == "optimizer-eps-underflow"
    assert finding["exact"] is True


def test_unchecked_harmless_ops_pass_badness_through(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), neginf=1)
    fine = g.op("aten::mm", g.outside(), g.outside())
    cat = g.op("aten::cat", fine, bad, flags=HARMLESS)
    relu = g.op("aten::abs", cat, flags=HARMLESS)
    loss = g.op("aten::mean", g.seen(relu, posinf=1), posinf=1)
    finding = blamed(g, "loss", loss)
    assert finding["first_cause"]["op_id"] == bad.op_id
    assert finding["exact"] is True


def test_a_harmless_op_that_turns_inf_into_nan_leads_to_the_inf(g: Graph) -> None:
    inf = g.op("aten::exp", g.op("aten::mm"), posinf=1)
    sine = g.op("aten::sin", inf, nan=1, flags=HARMLESS)
    loss = g.op("aten::mean", sine, nan=1)
    assert blamed(g, "loss", loss)["first_cause"]["op_id"] == inf.op_id


def test_a_guess_among_unmeasured_inputs_is_not_exact(g: Graph) -> None:
    one, other = g.outside(nan=1), g.outside(nan=1)
    joined = g.op("aten::cat", one, other, nan=1, flags=HARMLESS)
    finding = blamed(g, "loss", g.op("aten::mean", joined, nan=1))
    assert finding["exact"] is False
    assert finding["doubts"]


def test_the_backward_op_shows_its_forward_line(g: Graph) -> None:
    x = g.op("aten::sub", g.outside(), g.outside(), vmin=0.0, vmax=0.0)
    root = g.op("aten::sqrt", x, vmin=0.0, vmax=0.0)
    grad = g.op("aten::div", g.outside(), root, posinf=4, phase=BACKWARD, of=root, source=False)
    finding = blamed(g, "gradient", grad, "0.weight")
    assert finding["first_cause"]["op_id"] == grad.op_id
    assert finding["first_cause"]["phase"] == "backward"
    assert finding["first_cause"]["source"]["line"] == g.line(root)
    assert finding["rule"] == "sqrt-gradient-at-zero"


def test_a_custom_backward_shows_its_own_line(g: Graph) -> None:
    forward = g.op("MyFunction", g.op("aten::mm"))
    grad = g.op("aten::div", forward, g.outside(vmin=0, vmax=0), nan=1, phase=BACKWARD, of=forward)
    finding = blamed(g, "gradient", grad)
    assert finding["first_cause"]["source"]["line"] == g.line(grad)


def test_the_where_gradient_trap_blames_the_hidden_forward_op(g: Graph) -> None:
    x = g.op("aten::mm", g.outside(), g.outside(), vmax=777.9)
    below = g.op("aten::exp", x, posinf=7)
    chosen = g.op("aten::where", g.outside(), below, x, flags=HARMLESS)
    loss = g.op("aten::mean", chosen, shape=())
    zero = g.op("aten::where", loss, phase=BACKWARD, of=chosen, flags=HARMLESS)
    nan = g.op("aten::mul", zero, below, nan=7, phase=BACKWARD, of=below)
    grad = g.op("aten::mm", nan, x, nan=42, phase=BACKWARD, of=x)
    finding = blamed(g, "gradient", grad, "0.weight")
    assert finding["first_cause"]["op_id"] == below.op_id
    assert finding["rule"] == "where-gradient"
    assert finding["hidden_by"]["op_id"] == chosen.op_id
    assert [entry["op_id"] for entry in finding["path"]] == [
        below.op_id,
        chosen.op_id,
        nan.op_id,
        grad.op_id,
    ]
    assert "777.9" in finding["first_cause"]["why"]


def test_an_in_place_op_is_the_origin_if_what_it_overwrote_was_finite(g: Graph) -> None:
    x = g.op("aten::mm", g.outside(), g.outside())
    bad = g.op("aten::log_", x, nan=1, flags=INPLACE)
    finding = blamed(g, "loss", g.op("aten::mean", bad, nan=1))
    assert finding["first_cause"]["op_id"] == bad.op_id
    assert finding["exact"] is True


def test_an_in_place_op_passes_on_what_it_overwrote(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    scaled = g.op("aten::mul_", bad, nan=1, flags=INPLACE)
    assert blamed(g, "loss", scaled)["first_cause"]["op_id"] == bad.op_id


def test_a_partial_write_leads_to_what_it_left_alone(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    patched = g.op("aten::copy_", bad, g.outside(), flags=INPLACE)
    # The write itself was finite, the tensor as a whole still is not.
    whole = Value(
        g.outside(nan=1).record.__class__(patched.record.value_id, stats=bad.record.stats)
    )
    loss = g.op("aten::mean", whole, nan=1)
    finding = blamed(g, "loss", loss)
    assert finding["first_cause"]["op_id"] == bad.op_id
    assert finding["exact"] is True


def test_uninitialised_memory_that_is_used_is_named(g: Graph) -> None:
    memory = g.op("aten::empty", nan=5, flags=GARBAGE)
    finding = blamed(g, "loss", g.op("aten::mean", memory, nan=1))
    assert finding["rule"] == "uninitialised-memory"


def test_a_lost_record_is_said_and_the_earliest_known_op_blamed(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    known = g.op("aten::mul", bad, nan=1)
    loss = g.op("aten::mean", known, nan=1)
    g.forget(bad)
    finding = blamed(g, "loss", loss)
    assert finding["first_cause"]["op_id"] == known.op_id
    assert finding["exact"] is False
    assert any("no longer recorded" in doubt for doubt in finding["doubts"])


def test_an_inexact_source_line_is_said(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1, flags=OpFlag.INEXACT_SOURCE)
    finding = blamed(g, "loss", bad)
    assert finding["exact"] is False
    assert "nearest" in finding["doubts"][0]


def test_doubts_of_the_sink_reach_the_finding(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    finding = g.explain(g.sink("loss", bad, doubts=["the replay was not bit-equal"]))
    assert finding["doubts"] == ["the replay was not bit-equal"]
    assert finding["exact"] is False


def test_something_written_behind_the_recorders_back_is_said(g: Graph) -> None:
    fine = g.op("aten::mm", g.outside(), g.outside())
    reader = g.op("aten::mean", g.seen(fine, nan=1), nan=1)
    finding = blamed(g, "loss", g.op("aten::neg", reader, nan=1))
    assert finding["first_cause"]["op_id"] == reader.op_id
    assert finding["exact"] is False
    assert "not recorded" in finding["doubts"][0]


def test_a_sink_without_an_op_takes_the_steps_last_bad_op(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    g.op("aten::mean", bad, nan=1)
    finding = g.explain(g.sink("loss", bad, value_id=-1, op_id=-1))
    assert finding["first_cause"]["op_id"] == bad.op_id
    assert finding["exact"] is False


def test_a_sink_of_a_run_without_records_has_no_cause(g: Graph) -> None:
    finding = g.explain(g.sink("loss", g.outside(nan=1)))
    assert finding["first_cause"] is None
    assert finding["severity"] == "error"


def test_a_constant_inf_that_is_only_read_is_no_error(g: Graph) -> None:
    best = g.op("aten::full", posinf=1, flags=CONSTANT, shape=())
    finding = blamed(g, "read", best)
    assert finding["severity"] == "info"
    assert finding["verdict"] == "clean"


@pytest.mark.parametrize("flags", [CONSTANT, CONSTANT | HARMLESS])
def test_a_constant_that_was_not_checked_is_found_behind_harmless_ops(
    g: Graph, flags: OpFlag
) -> None:
    x = g.op("aten::mm", g.outside(), g.outside())
    masked = g.op("aten::masked_fill", x, neginf=8, flags=flags, checked=False)
    joined = g.op("aten::cat", x, masked, neginf=8, flags=HARMLESS)
    finding = blamed(g, "read", joined)
    assert (finding["verdict"], finding["first_cause"]["op_id"]) == ("clean", masked.op_id)
    assert finding["exact"] is True


def test_zeros_like_something_bad_are_finite(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    zeros = g.op("aten::zeros_like", bad, flags=CONSTANT, checked=False)
    joined = g.op("aten::cat", zeros, g.outside(nan=1), nan=1, flags=HARMLESS)
    finding = blamed(g, "loss", g.op("aten::mean", joined, nan=1))
    assert finding["rule"] == "bad-outside-value"


def test_a_nan_written_on_purpose_is_blamed_if_it_reaches_the_loss(g: Graph) -> None:
    missing = g.op("aten::full", nan=32, flags=CONSTANT, checked=False)
    finding = blamed(g, "loss", g.op("aten::add", missing, g.op("aten::mm"), nan=32))
    assert finding["first_cause"]["op_id"] == missing.op_id
    assert finding["rule"] == "non-finite-constant"


def test_a_computed_inf_that_is_read_is_an_error(g: Graph) -> None:
    inf = g.op("aten::exp", g.op("aten::mm"), posinf=1)
    assert blamed(g, "read", inf)["severity"] == "error"


def test_a_masked_class_that_is_a_target_is_an_error(g: Graph) -> None:
    masked = g.op("aten::masked_fill", g.op("aten::mm"), neginf=8, flags=CONSTANT)
    logp = g.op("aten::_log_softmax", masked, neginf=8)
    loss = g.op("aten::nll_loss_forward", logp, posinf=1, shape=())
    finding = blamed(g, "loss", loss)
    assert finding["severity"] == "error"
    assert finding["rule"] == "non-finite-constant"


def test_a_cycle_in_a_damaged_trace_ends(g: Graph) -> None:
    a = g.op("aten::cat", flags=HARMLESS, nan=1)
    b = g.op("aten::cat", a, flags=HARMLESS, nan=1)
    op = g.op_of(a)
    g.ops[a.op_id] = op.__class__(
        **{
            **{name: getattr(op, name) for name in op.__slots__},
            "inputs": (g.op_of(b).outputs[0],),
        }
    )
    finding = blamed(g, "loss", g.op("aten::mean", b, nan=1))
    assert finding["exact"] is False


def test_the_walk_is_bounded_and_says_so(g: Graph) -> None:
    value = g.op("aten::log", g.op("aten::mm"), nan=1)
    for _ in range(200):
        value = g.op("aten::mul", value, nan=1)
    sink = g.sink("loss", value)
    g.looked_up = 0
    finding = g.explain(sink, max_ops=50)
    assert g.looked_up < 200
    assert finding["exact"] is False


def test_a_long_path_is_shortened_in_the_middle(g: Graph) -> None:
    value = first = g.op("aten::log", g.op("aten::mm"), nan=1)
    for _ in range(300):
        value = g.op("aten::mul", value, nan=1)
    finding = blamed(g, "loss", value)
    assert finding["first_cause"]["op_id"] == first.op_id
    assert len(finding["path"]) == 65
    assert finding["path"][32]["note"] == "237 more ops"


def test_the_second_output_of_an_op_is_told_from_the_first(g: Graph) -> None:
    bad = g.op("aten::log", g.op("aten::mm"), nan=1)
    pair = g.op("aten::split", bad, nan=1, outputs=2)
    finding = blamed(g, "loss", g.op("aten::mean", g.slot(pair, 1), nan=1))
    assert finding["first_cause"]["op_id"] == bad.op_id


def test_forward_phase_of_a_checkpointed_op_keeps_its_name(g: Graph) -> None:
    bad = g.op("aten::exp", g.op("aten::mm"), posinf=1, phase=FORWARD, module="block.1")
    first = blamed(g, "gradient", g.op("aten::mul", bad, nan=1, phase=BACKWARD))["first_cause"]
    assert (first["module"], first["phase"]) == ("block.1", "forward")
