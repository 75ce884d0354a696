"""Each rule says why with the measured numbers, and what to write instead."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from graph import BACKWARD, OPTIMIZER, Graph

from tracelens.analysis.dtypes import is_float, limits
from tracelens.analysis.names import canonical, forward_name
from tracelens.analysis.rules import TABLE
from tracelens.events import OpFlag


@dataclass
class Expect:
    """One op with its inputs and what its rule should say."""

    rule: str
    op: str
    inputs: list[dict[str, Any]]
    out: dict[str, Any]
    why: list[str] = field(default_factory=list)
    fix: str = ""
    forward: str = ""


def r(low: float | None, high: float | None, **about: Any) -> dict[str, Any]:
    """An input with this range."""
    return {"vmin": low, "vmax": high, **about}


HALF = {"dtype": "float16"}
EMPTY = {"shape": (0, 8)}
INF, NAN, NEG = {"posinf": 3}, {"nan": 3}, {"neginf": 3}

CASES = [
    Expect("exp-overflow", "aten::exp", [r(-1, 777.9)], INF, ["777.9", "88.72"], "clamp(max=88)"),
    Expect("exp-overflow", "aten::exp_", [r(0, 12, **HALF)], {**INF, **HALF}, ["11.09"]),
    Expect("exp-overflow", "aten::cosh", [r(-300, 1)], INF, ["300", "89.42"]),
    Expect("exp-overflow", "Exp", [r(0, 90)], INF, ["88.72"]),
    Expect("pow-overflow", "aten::pow", [r(-1, 3e20)], INF, ["3e+20"]),
    Expect("pow-overflow", "aten::square", [r(-1, 3e20)], INF, ["1.845e+19"]),
    Expect("pow-negative-base", "aten::pow", [r(-0.5, 3)], NAN, ["-0.5"], "clamp_min(0)"),
    Expect("pow-of-zero", "aten::pow", [r(0, 3, zero=2)], INF, ["1 / 0"]),
    Expect("pow-gradient-at-zero", "aten::mul", [r(0, 1)], INF, ["x = 0"], forward="aten::pow"),
    Expect("log-of-zero", "aten::log", [r(0, 1)], NEG, ["input min 0"], "clamp_min(1e-12)"),
    Expect("log-of-zero", "aten::log", [r(0, 1, **HALF)], {**NEG, **HALF}, [], "6.104e-05"),
    Expect("log-of-negative", "aten::log1p", [r(-1.5, 1)], NAN, ["-1.5", "below -1"]),
    Expect("log-of-zero", "Log", [r(0, 1)], NEG, ["input min 0"]),
    Expect("log-gradient-at-zero", "aten::div", [r(0, 0)], NAN, ["1 / x"], forward="aten::log"),
    Expect("logit-domain", "aten::logit", [r(0, 1)], INF, ["max 1"], "eps=1e-6"),
    Expect("gamma-pole", "aten::lgamma", [r(0, 1)], INF, ["poles"]),
    Expect("log-of-zero", "aten::xlogy", [r(1, 1), r(0, 1)], NEG, ["second input"]),
    Expect("sqrt-of-negative", "aten::sqrt", [r(-1e-9, 1)], NAN, ["-1e-09"], "clamp_min(0"),
    Expect("rsqrt-of-zero", "aten::rsqrt", [r(0, 1)], INF, ["1 / sqrt(x)"], "1e-5"),
    Expect("sqrt-gradient-at-zero", "aten::div", [r(0, 1), r(0, 0)], INF, [], "", "aten::sqrt"),
    Expect(
        "norm-gradient-at-zero",
        "aten::div",
        [r(0, 0), r(0, 0)],
        NAN,
        ["zero vector"],
        forward="aten::linalg_vector_norm",
    ),
    Expect("weight-norm-of-zero", "aten::_weight_norm_interface", [r(0, 0)], NAN, ["0 / 0"]),
    Expect("norm-overflow", "aten::linalg_vector_norm", [r(-1, 3e20)], INF, ["1.845e+19"]),
    Expect("zero-by-zero", "aten::div", [r(0, 0), r(0, 2, zero=4)], NAN, ["4 elements", "0 / 0"]),
    Expect("division-by-zero", "aten::div", [r(1, 1), r(0, 2)], INF, ["x / 0"], "clamp_min"),
    Expect("division-by-zero", "RealDiv", [r(1, 1), r(0, 2)], INF, ["x / 0"]),
    Expect("division-overflow", "aten::div", [r(1, 1e30), r(1e-20, 1)], INF, ["1e+30"]),
    Expect("division-by-zero", "aten::reciprocal", [r(0, 1)], INF, ["1 / 0"]),
    Expect(
        "division-overflow",
        "aten::mul",
        [r(1e-37, 4, zero=0)],
        INF,
        ["-1 / x^2"],
        forward="aten::reciprocal",
    ),
    Expect(
        "cumulative-overflow", "aten::cumsum", [r(0, 255, **HALF)], {**INF, **HALF}, [], "dtype"
    ),
    Expect("trig-domain", "aten::acos", [r(-1, 1.0000001)], NAN, ["[-1, 1]"], "clamp(-1 + 1e-6"),
    Expect("trig-gradient-at-edge", "aten::mul", [r(1, 1)], INF, [], "atan2", "aten::acos"),
    Expect("open-interval-domain", "aten::atanh", [r(-1, 1)], INF, ["max 1"]),
    Expect("open-interval-domain", "aten::erfinv", [r(-1, 1)], INF, ["erfinv"]),
    Expect("trig-domain", "aten::acosh", [r(0.5, 2)], NAN, ["0.5"]),
    Expect("atan2-gradient-at-origin", "aten::div", [r(0, 0)], NAN, [], "", "aten::atan2"),
    Expect("fully-masked-row", "aten::_softmax", [r(0, 1, neginf=8)], NAN, ["8 scores"]),
    Expect("softmax-of-inf", "aten::_log_softmax", [r(0, 1, posinf=2)], NAN, ["inf - inf"]),
    Expect(
        "attention-overflow",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        [r(-900, 900, **HALF), r(-900, 900, **HALF)],
        {**INF, **HALF},
        ["900", "65504"],
    ),
    Expect("variance-of-one", "aten::var", [r(1, 1, shape=(4, 1))], {**NAN, "shape": (4,)}, []),
    Expect("variance-of-zero", "aten::native_layer_norm", [r(2, 2)], NAN, ["every value is 2"]),
    Expect(
        "negative-running-variance",
        "aten::native_batch_norm",
        [r(-1, 1), r(1, 1), r(0, 0), r(0, 0), r(-0.2, 1)],
        NAN,
        ["-0.2"],
        "update_bn",
    ),
    Expect(
        "normalisation-overflow",
        "aten::native_batch_norm",
        [r(-1, 900, **HALF)],
        {**NAN, **HALF},
        ["900", "255.9"],
    ),
    Expect("std-gradient-at-zero", "aten::div", [r(0, 0)], NAN, ["constant"], "", "aten::std"),
    Expect(
        "empty-reduction", "aten::mean", [r(None, None, **EMPTY)], {**NAN, "shape": ()}, ["[0, 8]"]
    ),
    Expect(
        "product-overflow",
        "aten::mm",
        [r(-1, 300, **HALF)] * 2,
        {**INF, **HALF},
        ["65504"],
        "bfloat16",
    ),
    Expect(
        "product-overflow", "aten::convolution", [r(-1, 1e25)] * 2, INF, ["1e+25"], "learning rate"
    ),
    Expect("product-overflow", "MatMul", [r(-1, 1e25)] * 2, INF, ["8 terms"]),
    Expect("arithmetic-overflow", "aten::sum", [r(0, 4000, **HALF)], {**INF, **HALF}, ["65504"]),
    Expect("value-at-the-limit", "aten::mul", [r(-1, 3.4e38)], INF, ["largest float32"], "where"),
    Expect("cumulative-overflow", "aten::cumprod", [r(0, 9)], INF, ["many factors"], "cumsum"),
    Expect("cumulative-gradient", "aten::div", [r(0, 0)], NAN, [], "", "aten::cumprod"),
    Expect(
        "cast-overflow",
        "aten::_to_copy",
        [r(0, 70000)],
        {**INF, **HALF},
        ["70000", "65504"],
        "bfloat16",
    ),
    Expect(
        "bce-not-probabilities",
        "aten::binary_cross_entropy",
        [r(-3, 4)],
        NAN,
        ["-3"],
        "with_logits",
    ),
    Expect("all-targets-ignored", "aten::nll_loss_forward", [r(-3, -1)], NAN, ["ignore_index"]),
    Expect(
        "softmax-of-inf",
        "SparseSoftmaxCrossEntropyWithLogits",
        [r(0, 1, neginf=2)],
        NAN,
        ["2 inf among its logits"],
        "-1e9",
    ),
    Expect("loss-overflow", "aten::mse_loss", [r(0, 1e25)] * 2, INF, ["1e+25"]),
    Expect("ctc-impossible-alignment", "aten::_ctc_loss", [r(-3, -1)], INF, [], "zero_infinity"),
    Expect("loss-log-domain", "aten::kl_div", [r(-3, -1), r(-0.1, 1)], NAN, ["-3"]),
    Expect("singular-matrix", "aten::linalg_inv_ex", [r(0, 1)], NAN, ["singular"]),
    Expect("repeated-singular-values", "aten::div", [r(0, 0)], NAN, [], "", "aten::_linalg_svd"),
    Expect("non-finite-origin", "mylib::mystery", [r(-1, 5)], NAN, ["No rule", "magnitude 5"]),
]


def explained(expect: Expect) -> dict[str, Any]:
    g = Graph()
    inputs = [g.op("aten::clone", **about) for about in map(_as_op, expect.inputs)]
    if expect.forward:
        fwd = g.op(expect.forward, *inputs, measured=True)
        bad = g.op(expect.op, *inputs, phase=BACKWARD, of=fwd, source=False, **expect.out)
        return g.explain(g.sink("gradient", bad, "0.weight"))
    return g.explain(g.sink("loss", g.op(expect.op, *inputs, **expect.out)))


def _as_op(about: dict[str, Any]) -> dict[str, Any]:
    """An input with Infs is a constant mask or a computed overflow that the op at hand reads."""
    return {**about, "flags": OpFlag.CONSTANT} if about.keys() & {"posinf", "neginf"} else about


@pytest.mark.parametrize("expect", CASES, ids=lambda e: f"{e.rule}:{e.op}:{e.forward}")
def test_the_rule_says_why_and_how_to_fix_it(expect: Expect) -> None:
    finding = explained(expect)
    first = finding["first_cause"]
    assert finding["rule"] == expect.rule
    assert [word for word in expect.why if word not in first["why"]] == []
    assert expect.fix in first["fix"]
    assert first["why"].endswith(".")


def test_every_rule_of_the_tables_is_shown_here() -> None:
    rules = {rule for tried in TABLE.values() for rule in tried}
    shown = {
        rule for e in CASES for name in (e.op, e.forward) for rule in TABLE.get(_key(name), ())
    }
    left = {rule.__name__ for rule in rules - shown}
    assert left == set()


def _key(name: str) -> str:
    return forward_name(name) if forward_name(name) in TABLE else canonical(name)


def test_the_log_rule_names_the_better_function_for_what_made_its_input() -> None:
    g = Graph()
    probs = g.op("aten::_softmax", g.op("aten::mm"), vmin=0.0, vmax=1.0)
    bad = g.op("aten::log", probs, neginf=1)
    assert "log_softmax" in g.explain(g.sink("loss", bad))["advice"]


@pytest.mark.parametrize(
    ("op", "out", "rule"),
    [
        ("aten::addcdiv_", {"nan": 1, "dtype": "float16"}, "optimizer-eps-underflow"),
        ("aten::addcdiv_", {"nan": 1}, "optimizer-zero-denominator"),
        ("aten::_fused_adam_", {"nan": 1}, "optimizer-zero-denominator"),
        ("aten::addcmul_", {"posinf": 1}, "optimizer-overflow"),
        ("aten::_foreach_sqrt", {"nan": 1}, "optimizer-negative-moment"),
        ("aten::div", {"nan": 1}, "zero-by-zero"),
    ],
)
def test_optimizer_ops_have_their_own_rules(op: str, out: dict[str, Any], rule: str) -> None:
    g = Graph()
    about = {"dtype": out.get("dtype", "float32")}
    state = g.op("aten::lerp", g.outside(), phase=OPTIMIZER, **about)
    floor = g.op("aten::add", g.outside(), phase=OPTIMIZER, vmin=0.0, vmax=1.0, **about)
    bad = g.op(op, state, floor, phase=OPTIMIZER, **out)
    assert g.explain(g.sink("parameter", bad, "w"))["rule"] == rule


@pytest.mark.parametrize("phase", [OPTIMIZER, BACKWARD])
def test_a_number_that_is_nan_is_named_as_such(phase: Any) -> None:
    g = Graph()
    grad = g.op("aten::mm", phase=BACKWARD)
    flags = OpFlag.CONSTANT | OpFlag.INPLACE
    bad = g.op("aten::add_", g.op("aten::mm"), grad, nan=32, phase=phase, flags=flags)
    finding = g.explain(g.sink("parameter", bad, "w"))
    assert finding["rule"] == "non-finite-scalar"
    assert ("learning rate" in finding["first_cause"]["why"]) is (phase is OPTIMIZER)


def test_hiding_by_saturation_is_told_without_the_where_advice() -> None:
    g = Graph()
    inf = g.op("aten::div", g.op("aten::mm", vmin=1), g.op("aten::mm", vmin=0), posinf=1)
    squashed = g.op("aten::sigmoid", inf, flags=OpFlag.HARMLESS)
    g.op("aten::mean", squashed, shape=())
    grad = g.op("aten::mul", inf, nan=1, phase=BACKWARD, of=inf)
    finding = g.explain(g.sink("gradient", grad))
    assert finding["rule"] == "division-by-zero"
    assert "sigmoid hides it in the forward pass" in finding["first_cause"]["why"]
    assert "torch.where(cond" not in finding["advice"]


def test_divergence_is_told_from_the_logged_losses() -> None:
    g = Graph()
    g.step = 9
    bad = g.op("aten::mm", g.op("aten::clone", vmax=1e30), posinf=3)
    steps = [{"t": "step", "step": i, "scalars": {"loss": 0.5 * 40.0**i}} for i in range(9)]
    finding = g.explain(g.sink("loss", bad), steps=steps)
    assert "The loss grew from 0.5 at step 0" in finding["first_cause"]["why"]
    steady = [{"t": "step", "step": i, "scalars": {"loss": 0.5}} for i in range(9)]
    assert "grew" not in g.explain(g.sink("loss", bad), steps=steady)["first_cause"]["why"]


def test_a_line_inside_backward_is_a_custom_function() -> None:
    g = Graph()
    forward = g.op("MyFunction", g.op("aten::mm"))
    bad = g.op(
        "aten::reciprocal", g.op("aten::clone", vmin=0), posinf=1, phase=BACKWARD, of=forward
    )
    op = g.op_of(bad)
    assert op.source is not None
    frame = op.source.__class__(op.source.file, op.source.line, "Clamp.backward", "return 1 / x")
    g.ops[bad.op_id] = op.__class__(
        **{**{name: getattr(op, name) for name in op.__slots__}, "source": frame}
    )
    finding = g.explain(g.sink("gradient", bad))
    assert finding["rule"] == "custom-backward"
    assert "gradcheck" in finding["advice"]


@pytest.mark.parametrize(
    ("dtype", "largest", "smallest", "exp_limit"),
    [
        ("float16", 65504.0, 5.960464477539063e-08, 11.089866488461016),
        ("bfloat16", 3.3895313892515355e38, 9.183549615799121e-41, 88.72),
        ("float32", 3.4028234663852886e38, 1.401298464324817e-45, 88.72283905206835),
        ("float64", 1.7976931348623157e308, 5e-324, 709.782712893384),
    ],
)
def test_limits_are_those_of_ieee_754(
    dtype: str, largest: float, smallest: float, exp_limit: float
) -> None:
    limit = limits(dtype)
    assert limit is not None
    assert limit.largest == largest
    assert limit.smallest == smallest
    assert math.isclose(limit.exp_limit, exp_limit, rel_tol=1e-3)


def test_integers_have_no_limits_and_cannot_be_bad() -> None:
    assert limits("int64") is None
    assert not is_float("int64")
    assert not is_float("bool")
    assert is_float("")
