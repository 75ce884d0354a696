"""TensorFlow's ops are known by their names, and the advice is in TensorFlow's words."""

from __future__ import annotations

import re
import string
from typing import Any

import pytest
from graph import BACKWARD, DATA, OPTIMIZER, Graph

from tracelens.analysis.names import MASKS, PREDICATES, canonical, framework_of, holds_indices
from tracelens.analysis.report import render
from tracelens.analysis.rules.vocabulary import FRAMEWORKS, PHRASES, Vocabulary
from tracelens.events import OpFlag

FOREIGN = re.compile(r"torch|clamp|\bdim\b|\.float\(\)|masked_fill|autocast|DataLoader|\beps\b")
HALF = {"dtype": "float16"}


def r(low: float, high: float, **about: Any) -> dict[str, Any]:
    """An input with this range."""
    return {"vmin": low, "vmax": high, **about}


NAN, INF, NEG = {"nan": 3}, {"posinf": 3}, {"neginf": 3}
CASES = [
    ("exp-overflow", "Exp", [r(0, 900)], INF, "", "tf.math.exp(tf.minimum(x, 88))"),
    ("log-of-zero", "Log", [r(0, 1)], NEG, "", "tf.math.log(tf.maximum(x, 1e-12))"),
    ("log-gradient-at-zero", "Reciprocal", [r(0, 1)], INF, "Log", "tf.math.log(tf.maximum"),
    ("pow-gradient-at-zero", "Pow", [r(0, 1), r(-0.5, -0.5)], INF, "Pow", "tf.pow(tf.maximum"),
    ("pow-negative-base", "Pow", [r(-1, 1), r(0.5, 0.5)], NAN, "", "tf.sign(x)"),
    ("pow-overflow", "L2Loss", [r(-1, 3e20)], INF, "", "tf.cast(x, tf.float32)"),
    ("sqrt-gradient-at-zero", "SqrtGrad", [r(0, 1), r(1, 1)], INF, "Sqrt", "tf.math.sqrt("),
    ("sqrt-of-negative", "Sqrt", [r(-1e-9, 1)], NAN, "", "tf.math.reduce_variance"),
    ("rsqrt-of-zero", "Rsqrt", [r(0, 1)], INF, "", "tf.math.rsqrt(x + 1e-5)"),
    ("zero-by-zero", "RealDiv", [r(0, 0), r(0, 2, zero=1)], NAN, "", "tf.math.divide_no_nan"),
    ("division-by-zero", "RealDiv", [r(1, 1), r(0, 2, zero=1)], INF, "", "tf.maximum(y, 1e-12)"),
    ("division-by-zero", "Xdivy", [r(1, 1), r(0, 2, zero=1)], INF, "", "tf.maximum"),
    ("trig-gradient-at-edge", "Reciprocal", [r(1, 1)], INF, "Acos", "tf.math.acos(tf.clip_by_"),
    ("fully-masked-row", "Softmax", [r(0, 1, neginf=8)], NAN, "", "MultiHeadAttention"),
    ("softmax-of-inf", "LogSoftmax", [r(0, 1, posinf=2)], NAN, "", "tf.clip_by_value(logits"),
    ("product-overflow", "BatchMatMulV2", [r(-1, 1e25)] * 2, INF, "", "clipnorm"),
    ("product-overflow", "Conv2D", [r(-1, 300, **HALF)] * 2, INF | HALF, "", "tf.cast"),
    ("product-overflow", "Einsum", [r(-1, 1e25)] * 2, INF, "", "clipnorm"),
    ("arithmetic-overflow", "BiasAdd", [r(-1, 6e4, **HALF)], INF | HALF, "", "bfloat16"),
    ("arithmetic-overflow", "Sum", [r(-1, 6e4, **HALF)], INF | HALF, "", "bfloat16"),
    ("cast-overflow", "Cast", [r(0, 7e4)], INF | HALF, "", "tf.clip_by_value(x, -65504, 65504)"),
    ("empty-reduction", "Mean", [r(0, 0, shape=(0, 8))], NAN, "", "tf.math.divide_no_nan"),
    ("variance-of-zero", "FusedBatchNormV3", [r(2, 2)], NAN, "", "epsilon"),
    ("singular-matrix", "LogMatrixDeterminant", [r(0, 1)], NEG, "", "tf.eye(n)"),
    ("singular-matrix", "Cholesky", [r(0, 1)], NAN, "", "tf.linalg.pinv"),
    ("singular-matrix", "MatrixInverse", [r(0, 1)], INF, "", "tf.linalg.lstsq"),
    ("gamma-pole", "Lgamma", [r(0, 1)], INF, "", "tf.maximum(x, 1e-6)"),
    ("log-of-zero", "Xlogy", [r(1, 1), r(0, 1)], NEG, "", "tf.math.xlogy"),
]


def explained(op: str, inputs: list[Any], out: dict[str, Any], forward: str) -> dict[str, Any]:
    g = Graph()
    constant = {"flags": OpFlag.CONSTANT}
    read = [
        g.op("Identity", **about, **(constant if about.keys() & {"posinf", "neginf"} else {}))
        for about in inputs
    ]
    if not forward:
        return g.explain(g.sink("loss", g.op(op, *read, **out)))
    fwd = g.op(forward, *read, measured=True)
    bad = g.op(op, *read, phase=BACKWARD, of=fwd, source=False, **out)
    return g.explain(g.sink("gradient", bad, "dense/kernel"))


@pytest.mark.parametrize(("rule", "op", "inputs", "out", "forward", "fix"), CASES)
def test_advice_is_in_the_words_of_tensorflow(
    rule: str, op: str, inputs: list[Any], out: dict[str, Any], forward: str, fix: str
) -> None:
    finding = explained(op, inputs, out, forward)
    told = f"{finding['first_cause']['why']} {finding['advice']}"
    assert finding["rule"] == rule
    assert fix in finding["advice"]
    assert not FOREIGN.search(told), told
    assert op in render(finding)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("MatMul", "matmul"), ("BatchMatMulV3", "bmm"), ("AddV2", "add"), ("RealDiv", "div"),
        ("SelectV2", "where"), ("Select", "where"), ("Conv2D", "conv2d"), ("TopKV2", "topk"),
        ("MaxPool3D", "max_pool3d"), ("L2Loss", "l2_loss"), ("IsNan", "isnan"), ("Relu6", "relu6"),
        ("FusedBatchNormV3", "fused_batch_norm"), ("ResourceApplyAdam", "resource_apply_adam"),
        ("Atan2", "atan2"), ("DivNoNan", "div_no_nan"), ("GatherV2", "gather"),
        ("aten::where", "where"), ("aten::conv2d", "conv2d"), ("aten::div_", "div"),
    ],
)  # fmt: skip
def test_an_op_has_one_name_in_both_frameworks(name: str, told: str) -> None:
    assert canonical(name) == told


def test_what_only_looks_and_what_can_hide_is_known() -> None:
    looks = ["IsNan", "IsInf", "IsFinite", "Less", "GreaterEqual", "ArgMax", "Shape", "Size"]
    hides = ["SelectV2", "ClipByValue", "DivNoNan", "MulNoNan", "Relu", "Maximum", "GatherNd"]
    assert {canonical(name) for name in looks} <= PREDICATES
    assert {canonical(name) for name in hides} <= MASKS


def test_conditions_and_indices_are_never_taken_for_values() -> None:
    assert [holds_indices(canonical("SelectV2"), i, 3) for i in range(3)] == [True, False, False]
    assert [holds_indices(canonical("GatherV2"), i, 3) for i in range(3)] == [False, True, True]
    put = canonical("TensorScatterUpdate")
    assert [holds_indices(put, i, 3) for i in range(3)] == [False, True, False]


def test_the_framework_of_an_op_is_told_by_its_name() -> None:
    assert framework_of("ResourceApplyAdam") == "tensorflow"
    assert framework_of("aten::_foreach_add") == "torch"
    assert framework_of("AddmmBackward0") == "torch"
    assert framework_of("step_input") == ""


@pytest.mark.parametrize(
    ("name", "fix"), [("IteratorGetNext", "tf.math.is_finite"), ("feed", "np.isfinite(x).all()")]
)
def test_bad_batches_are_told_as_data(name: str, fix: str) -> None:
    g = Graph()
    batch = g.op(name, phase=DATA, nan=1)
    bad = g.op("MatMul", batch, nan=8)
    finding = g.explain(g.sink("loss", bad))
    assert finding["rule"] == "bad-data"
    assert fix in finding["advice"]


def test_infinite_weights_of_a_batch_are_not_called_a_constant_of_the_program() -> None:
    g = Graph()
    batch = g.op("IteratorGetNext", phase=DATA, posinf=1, vmin=1.0, vmax=1.0)
    bad = g.op("Mul", batch, g.op("MatMul"), posinf=1)
    finding = g.explain(g.sink("loss", bad))
    assert "IteratorGetNext handed over infinities" in finding["first_cause"]["why"]


@pytest.mark.parametrize(
    ("op", "out", "rule", "fix"),
    [
        ("ResourceApplyAdam", {"nan": 1}, "optimizer-zero-denominator", "epsilon=1e-07"),
        ("RealDiv", {"nan": 1}, "optimizer-zero-denominator", "epsilon=1e-07"),
        ("RealDiv", {"nan": 1, **HALF}, "optimizer-eps-underflow", "mixed_float16"),
        ("Square", {"posinf": 1}, "optimizer-overflow", "global_clipnorm"),
    ],
)
def test_updates_of_keras_are_explained_as_updates(
    op: str, out: dict[str, Any], rule: str, fix: str
) -> None:
    g = Graph()
    about = {"dtype": out.get("dtype", "float32")}
    state = g.op("Mul", g.outside(), phase=OPTIMIZER, **about)
    floor = g.op("AddV2", g.outside(), phase=OPTIMIZER, vmin=0.0, vmax=1.0, zero=2, **about)
    bad = g.op(op, state, floor, phase=OPTIMIZER, **out)
    finding = g.explain(g.sink("parameter", bad, "dense/kernel"))
    assert finding["rule"] == rule
    assert fix in finding["advice"]
    assert not FOREIGN.search(f"{finding['first_cause']['why']} {finding['advice']}")


def test_a_trap_of_where_is_told_with_tf_where() -> None:
    g = Graph()
    inf = g.op("Exp", g.op("MatMul", vmax=900.0), posinf=1)
    g.op("Mean", g.op("SelectV2", inf, flags=OpFlag.HARMLESS), shape=())
    grad = g.op("Mul", inf, nan=1, phase=BACKWARD, of=inf)
    finding = g.explain(g.sink("gradient", grad))
    assert finding["rule"] == "where-gradient"
    assert "SelectV2 hides it in the forward pass" in finding["first_cause"]["why"]
    assert "f(tf.where(cond, x, safe))" in finding["advice"]


def test_every_phrase_has_the_same_placeholders_in_every_framework() -> None:
    for phrase, forms in PHRASES.items():
        assert len(forms) == len(FRAMEWORKS), phrase
        used = [{name for _, name, _, _ in string.Formatter().parse(f) if name} for f in forms]
        assert all(fields <= used[0] for fields in used), phrase
    assert not [form for _, form in PHRASES.values() if FOREIGN.search(form)]


def test_an_unknown_framework_is_spoken_to_in_words_of_the_first() -> None:
    assert Vocabulary("jax")("at-least", x="x", low=0) == "x.clamp_min(0)"


def test_an_infinity_that_is_only_put_into_a_variable_is_no_error() -> None:
    g = Graph()
    inf = g.outside(posinf=1, shape=(), vmin=None, vmax=None)
    bad = g.op("AssignVariableOp", inf, posinf=1, shape=(), vmin=None, vmax=None)
    assert g.explain(g.sink("parameter", bad, "best"))["severity"] == "info"
    computed = g.op("AssignVariableOp", g.op("Exp", g.op("MatMul"), posinf=1), posinf=1)
    assert g.explain(g.sink("parameter", computed, "best"))["severity"] == "error"
