"""The text report, on the three kinds of findings."""

from __future__ import annotations

from typing import Any

import pytest
from graph import BACKWARD, DATA, OPTIMIZER, Graph

from tracelens.analysis.report import one_sentence, render
from tracelens.events import OpFlag

HARMLESS = OpFlag.HARMLESS


def where_trap() -> Graph:
    g = Graph()
    g.step = 2
    x = g.op("DataLoader", phase=DATA, vmax=777.9, shape=(8, 6))
    g.events.append(
        {
            "t": "data",
            "step": 2,
            "op_id": x.op_id,
            "loader": "DataLoader",
            "batch_index": 2,
            "batch_size": 8,
            "sample_indices": [16, 17, 18, 19, 20, 21, 22, 23],
        }
    )
    h = g.op("aten::addmm", x, g.outside(), vmax=777.9, shape=(8, 32))
    below = g.op(
        "aten::exp",
        h,
        posinf=7,
        shape=(8, 32),
        module="1",
        code="below = torch.exp(x) - 1.0",
        first_bad=(161, 162),
    )
    chosen = g.op("aten::where", g.outside(), below, h, flags=HARMLESS)
    loss = g.op("aten::mean", chosen, shape=())
    zero = g.op("aten::where", loss, phase=BACKWARD, of=chosen, flags=HARMLESS)
    nan = g.op("aten::mul", zero, below, nan=7, phase=BACKWARD, of=below)
    grad = g.op("aten::mm", nan, x, nan=42, shape=(48,), phase=BACKWARD, of=h)
    g.sink("gradient", grad, "0.weight")
    g.events.append({"t": "step", "step": 2, "scalars": {"loss": 6.52}})
    return g


def optimizer_eps() -> Graph:
    g = Graph()
    moment = g.op("aten::lerp_", g.outside(), phase=OPTIMIZER, dtype="float16")
    floor = g.op("aten::add", phase=OPTIMIZER, vmin=0.0, vmax=0.2, dtype="float16")
    weight = g.op(
        "aten::addcdiv_",
        g.outside(dtype="float16"),
        moment,
        floor,
        nan=8,
        phase=OPTIMIZER,
        dtype="float16",
        code="optimizer.step()",
        flags=OpFlag.INPLACE,
    )
    g.sink("parameter", weight, "0.weight")
    return g


def masked_labels() -> Graph:
    g = Graph()
    y = g.op("DataLoader", phase=DATA, nan=6)
    residual = g.op("aten::sub", g.op("aten::mm"), y, nan=6)
    chosen = g.op("aten::where", g.outside(), g.outside(), residual, flags=HARMLESS)
    g.op("aten::mean", chosen)
    return g


def test_the_where_trap_is_told_from_cause_to_sink() -> None:
    expected = """\
NaN  step 2  backward  first seen: the gradient of 0.weight (42 nan of 48)  the loss is finite: 6.52
  cause     1  train.py:12 in step
              below = torch.exp(x) - 1.0
  op        exp (forward of step 2)
  in        float32[8, 32]  min -1  max 777.9  (limit 3.403e+38)
  out       float32[8, 32]  7 inf of 256  min -1  max 1  (limit 3.403e+38)  at [5, 1] [5, 2]
            samples 5
  path      exp (inf 7 of 256) -> where (hidden: where did not select it) -> mul backward (0 * inf =
            nan) -> mm backward (nan 42 of 48) -> the gradient of 0.weight
  why       exp overflows: input max 777.9, limit for float32 is 88.72: 7 of 256 outputs are inf.
            where hides it in the forward pass; in the backward pass its zero gradient meets the
            inf: 0 * inf = nan.
  fix       make the input of the branch you do not use safe before the op, not its result:
            f(torch.where(cond, x, safe)). torch.exp(x.clamp(max=88)), or subtract the maximum first
            (log_softmax, logsumexp, logaddexp, softplus work in log space without overflow)
  data      DataLoader, batch 2, sample 5 of the batch, data set index 21"""
    assert render(where_trap().verdict(), width=100) == expected


def test_the_optimizer_report_names_the_eps_that_is_zero() -> None:
    text = render(optimizer_eps().verdict())
    assert text.startswith("NaN  step 0  optimizer  first seen: parameter 0.weight (8 nan of 32)")
    assert "optimizer.step()" in text
    assert "float16[4, 8]  overwritten in place\n" in text
    assert "an eps of 1e-08 (the default) is 0 in float16 (smallest 5.96e-08)" in " ".join(
        text.split()
    )


def test_a_masked_value_is_told_as_harmless() -> None:
    text = " ".join(render(masked_labels().verdict()).split())
    assert text.startswith("INFO non-finite values that do no harm: 1 place")
    assert "removed by where at train.py:13" in text


def test_a_clean_run_is_one_line() -> None:
    assert render(Graph().verdict()) == ("clean  no non-finite value reached anything that matters")


def test_a_finding_without_a_cause_still_says_what_is_bad() -> None:
    g = Graph()
    finding = g.explain(g.sink("loss", g.outside(nan=1)))
    text = render(finding)
    assert "no recorded op holds one" in text
    assert one_sentence(finding) == finding["message"]


def test_a_long_way_is_told_in_short() -> None:
    g = Graph()
    value = g.op("aten::log", g.op("aten::mm"), nan=1)
    for name in ("mul", "mul", "mul", "add", "sub", "mean", "neg", "div", "sum", "mm", "tanh"):
        value = g.op(f"aten::{name}", value, nan=1)
    g.sink("loss", value)
    text = " ".join(render(g.verdict()).split())
    assert "log (nan 1 of 32) -> mul (nan 1 of 32) x 3 -> add" in text
    assert "(2 more)" in text
    assert text.index("sum (nan") < text.index("tanh (nan 1 of 32) -> the loss")


def test_doubts_and_further_findings_are_told() -> None:
    g = where_trap()
    verdict = g.verdict()
    verdict["doubts"] = ["the replay was not bit-equal"]
    verdict["findings"] = verdict["findings"] * 3
    text = render(verdict)
    assert "not exact the replay was not bit-equal" in " ".join(text.split())
    assert "2 further findings" in text


@pytest.mark.parametrize("graph", [where_trap, optimizer_eps, masked_labels])
@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_asked_for(graph: Any, width: int) -> None:
    why = graph().verdict()
    for line in render(why, width=width).splitlines()[1:]:
        longest_word = max((len(word) for word in line.split()), default=0)
        assert len(line) <= max(width, 26 + longest_word)


def test_colour_changes_no_text() -> None:
    why = where_trap().verdict()
    coloured = render(why, color=True)
    assert "\x1b[" in coloured
    plain = coloured
    for code in ("1", "2", "31;1", "36", "36;1", "32;1", "0"):
        plain = plain.replace(f"\x1b[{code}m", "")
    assert plain == render(why, color=False)


def test_one_sentence_says_what_where_and_why() -> None:
    sentence = one_sentence(where_trap().verdict())
    assert sentence.startswith(
        "Inf first made by exp (7 inf of 256) at train.py:12 `below = torch.exp(x) - 1.0` in 1 "
        "(forward of step 2), seen in the gradient of 0.weight: exp overflows: input max 777.9"
    )
    assert "\n" not in sentence


def test_one_sentence_about_data_names_the_samples() -> None:
    g = Graph()
    x = g.op("DataLoader", phase=DATA, nan=1, first_bad=(17,))
    g.events.append(
        {
            "t": "data",
            "step": 0,
            "op_id": 0,
            "loader": "DataLoader",
            "batch_index": 3,
            "batch_size": 4,
        }
    )
    g.sink("loss", g.op("aten::mm", x, nan=4))
    sentence = one_sentence(g.verdict())
    assert sentence.startswith(
        "NaN came in with the data (DataLoader, batch 3, sample 2 of the batch)"
    )
