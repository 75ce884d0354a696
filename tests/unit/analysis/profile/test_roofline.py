"""FLOP, bytes and roofs, against torch's own counter and figures worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from profile_builder import ProfileBuilder

from tracelens.analysis.profile.devices import given_limits, limits_of, recorded_limits
from tracelens.analysis.profile.flops import work_of
from tracelens.analysis.profile.opcall import OpCall, broadcast, element_type
from tracelens.analysis.profile.roofline import roofline
from tracelens.errors import ConfigError


def call(
    shapes: list, dtype: str = "float", values: list | None = None, outputs: list | None = None
) -> OpCall:
    return OpCall(shapes, [dtype if shape else "" for shape in shapes], values or [], outputs or [])


@pytest.mark.parametrize(
    ("name", "arguments", "flops", "size"),
    [
        ("aten::mm", call([[8, 4], [4, 2]]), 128, 4 * (32 + 8 + 16)),
        ("aten::mm", call([[8, 4], [4, 2]], "c10::BFloat16"), 128, 2 * (32 + 8 + 16)),
        ("aten::addmm", call([[2], [8, 4], [4, 2]]), 128 + 16, 4 * (32 + 8 + 16 + 2)),
        ("aten::bmm", call([[3, 8, 4], [3, 4, 2]]), 384, 4 * 3 * 56),
        ("aten::matmul", call([[5, 8, 4], [4, 2]]), 5 * 128, 4 * (5 * 32 + 8 + 5 * 16)),
        ("aten::linear", call([[5, 4], [2, 4], [2]]), 80 + 10, 4 * (20 + 8 + 10 + 2)),
        ("aten::mv", call([[8, 4], [4]]), 64, 4 * (32 + 4 + 8)),
        ("aten::mul", call([[8, 1], [4]]), 32, 4 * (8 + 4 + 32)),
        ("aten::add_", call([[8, 4], [8, 4], []], values=["", "", "1"]), 32, 4 * 96),
        ("aten::copy_", call([[10], [10]]), 0, 80),
        ("aten::sum", call([[8, 4]]), 32, 128),
        ("aten::embedding", call([[100, 16], [3]], "float"), 0, 3 * 4 + 2 * 3 * 16 * 4),
        ("aten::native_layer_norm", call([[8, 4]]), 8 * 32, 256),
        ("aten::cat", call([[[2, 3], [4, 3]], []]), 0, 2 * 18 * 4),
        ("MatMul", call([[8, 4], [4, 2]]), 128, 4 * 56),
    ],
)  # fmt: skip
def test_work_of_common_ops(name: str, arguments: OpCall, flops: int, size: int) -> None:
    work = work_of(name, arguments)
    assert work is not None
    assert (work.flops, work.bytes) == (flops, size)


def test_a_convolution_counts_as_torch_counts_it() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    x, w = torch.ones(2, 3, 9, 9, requires_grad=True), torch.ones(8, 3, 3, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = torch.nn.functional.conv2d(x, w, stride=2, padding=1)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    values = ["", "", "", "[2, 2]", "[1, 1]", "[1, 1]", "False", "[0, 0]", "1"]
    work = work_of("aten::convolution", call([[2, 3, 9, 9], [8, 3, 3, 3], []], values=values))
    assert work is not None and work.flops == forward
    back = ["", "", "", "[0]", *values[3:], "[True, True, False]"]
    shapes = [[2, 8, 5, 5], [2, 3, 9, 9], [8, 3, 3, 3], []]
    work = work_of("aten::convolution_backward", call(shapes, values=back))
    assert work is not None and work.flops == counter.get_total_flops()
    cudnn = ["", "", "[1, 1]", "[2, 2]", "[1, 1]", "1", "False", "False", "True"]
    work = work_of("aten::cudnn_convolution", call([[2, 3, 9, 9], [8, 3, 3, 3]], values=cudnn))
    assert work is not None and work.flops == forward
    values[-1] = "3"
    work = work_of("aten::convolution", call([[2, 3, 9, 9], [9, 1, 3, 3], []], values=values))
    assert work is not None and work.flops == 2 * (2 * 9 * 5 * 5) * 9, "a channel of its own each"


def test_attention_counts_as_torch_counts_it_and_half_if_causal() -> None:
    counter = pytest.importorskip("torch.utils.flop_counter")
    shapes = [[2, 4, 16, 8], [2, 4, 24, 8], [2, 4, 24, 8]]
    name = "aten::_scaled_dot_product_flash_attention"
    whole = work_of(name, call(shapes, values=["", "", "", "0.", "False"]))
    half = work_of(name, call(shapes, values=["", "", "", "0.", "True"]))
    assert whole is not None and half is not None
    assert whole.flops == counter.sdpa_flop_count(*shapes) == 2 * half.flops
    backward = work_of(f"{name}_backward", call([shapes[0], *shapes]))
    assert backward is not None and backward.flops == whole.flops * 5 // 2


@pytest.mark.parametrize("shapes", [[], [[2, 3]], [[2, 3], [4, 5]], [None, None], [["x"], [3]]])
def test_arguments_that_fit_no_formula_have_no_work(shapes: list) -> None:
    assert work_of("aten::mm", call(shapes)) is None


@pytest.mark.parametrize("text", ["", "{", "3", '{"a": 1}', "null", "[[", '["x", null, [[1], 2]]'])
def test_damaged_arguments_are_no_error(text: str) -> None:
    for name in ("aten::mm", "aten::add", "aten::convolution", "aten::cat", "aten::_fused_adamw_"):
        work_of(name, OpCall.parse(text, text, text, text))


def test_shapes_broadcast_and_types_have_one_name() -> None:
    assert broadcast([[8, 1, 6], [7, 1]]) == [8, 7, 6]
    assert broadcast([]) == []
    assert broadcast([[0, 3], [1, 3]]) == [0, 3]
    assert element_type("c10::Half") == element_type("torch.float16") == "float16"


def gemm(build: ProfileBuilder, duration: int, dtype: str) -> None:
    """The matrix product of AMD's report on the H100, 8944 x 2816 x 1024, inside a linear layer."""
    outer = build.op("aten::linear", 0, 100, in_shapes="[[8944, 2816], [1024, 2816]]",
                     in_dtypes=json.dumps([dtype] * 2))  # fmt: skip
    inner = build.op("aten::mm", 10, 90, parent_id=outer, in_shapes="[[8944, 2816], [2816, 1024]]",
                     in_dtypes=json.dumps([dtype] * 2))  # fmt: skip
    build.launched("memset", (10, 20), (30, 830), op_id=inner, kind="memset")
    build.launched("gemm", (20, 30), (830, 30 + duration), op_id=inner)


def test_a_matrix_product_is_held_against_its_roof(build: ProfileBuilder, path: Path) -> None:
    gemm(build, 84_480, "c10::BFloat16")
    answer = roofline(build.load(path), limits_of("NVIDIA H100 80GB HBM3"))
    assert answer is not None
    (line,) = answer.groups
    assert (line.name, line.flops, line.bytes) == ("aten::mm", 51_581_550_592, 74_457_088)
    assert line.tflops == pytest.approx(610.6, abs=0.1)
    assert line.bound == "compute"
    assert line.roof_share == pytest.approx(0.6174, abs=1e-3)
    assert line.gain_ns == pytest.approx(84_480 * (1 - 0.6174), rel=1e-3)
    assert answer.covered_ns == answer.total_ns == 84_480


def test_fast_float32_products_are_held_against_tf32(build: ProfileBuilder, path: Path) -> None:
    gemm(build, 150_000, "float")
    answer = roofline(build.load(path), limits_of("A100-SXM4-80GB"))
    assert answer is not None
    assert answer.groups[0].tflops > 19.5
    assert answer.groups[0].roof_share == pytest.approx(answer.groups[0].tflops / 156, rel=1e-3)


def test_memory_bound_ops_are_held_against_the_bandwidth(build: ProfileBuilder, path: Path) -> None:
    op = build.op(
        "aten::mul", 0, 10, in_shapes="[[1000000], [1000000]]", in_dtypes='["float", "float"]'
    )
    build.launched("mul", (1, 2), (3, 6003), op_id=op)
    answer = roofline(build.load(path), given_limits(None, 100, 4000))
    assert answer is not None
    (line,) = answer.groups
    assert (line.bound, line.bandwidth_gbps, line.roof_share) == ("memory", 2000, 0.5)


def test_without_limits_speeds_are_told_alone(build: ProfileBuilder, path: Path) -> None:
    build.op("aten::mm", 0, 1000, in_shapes="[[8, 4], [4, 2]]", in_dtypes='["float", "float"]')
    build.op("aten::mm", 2000, 2010)
    answer = roofline(build.load(path))
    assert answer is not None
    assert (answer.groups[0].roof_share, answer.without_shapes) == (None, 1)
    assert answer.groups[0].total_ns == 1000, "host time where no device worked"


def test_limits_come_from_a_name_a_note_or_a_person(build: ProfileBuilder, path: Path) -> None:
    build.event("note", {"kind": "device", "name": "AMD Instinct MI300X VF", "message": "x"})
    found = recorded_limits(build.load(path))
    assert found is not None and found.name == "MI300X"
    given = given_limits("V100", None, 800)
    assert given is not None and (given.bandwidth_gbps, given.peak("fp16")) == (800, 125)
    assert given_limits(None, None, None) is None
    with pytest.raises(ConfigError, match="no limits of 'abacus' are known"):
        given_limits("abacus", None, None)
    with pytest.raises(ConfigError, match="above 0"):
        given_limits(None, -1, None)
