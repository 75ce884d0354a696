"""``tracelens profile``: every view, as text and as JSON, on traces with and without a device."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tracelens.cli import main
from tracelens.cli.profile import VIEWS

_BUILDER = Path(__file__).parents[1] / "unit" / "analysis" / "profile" / "profile_builder.py"
_spec = importlib.util.spec_from_file_location("profile_builder", _BUILDER)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
ProfileBuilder = _module.ProfileBuilder


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, four steps: data, a linear layer, a backward op, a collective, a copy, a wait."""
    path = tmp_path_factory.mktemp("gpu") / "run.tltrace"
    for rank in (0, 1):
        build = ProfileBuilder(rank)
        for step in range(4):
            at = step * 1_000_000
            build.step(step, at, at + 1_000_000)
            build.span("data", "DataLoader", at, at + 300_000, step=step)
            mm = build.op(
                "aten::mm", at + 310_000, at + 400_000, step=step, module="net.fc", file="train.py",
                line=12, in_shapes="[[512, 512], [512, 512]]", in_dtypes='["float", "float"]',
            )  # fmt: skip
            work = at + 330_000, at + 500_000
            build.launched("gemm", (at + 315_000, at + 320_000), work, op_id=mm, step=step)
            build.launched(
                "ncclDevKernel_AllReduce", (at + 350_000, at + 355_000),
                (at + 400_000 + 90_000 * rank, at + 600_000), step=step, kind="comm", stream=9,
                collective="allreduce", comm_ranks=2, size_bytes=1 << 20, comm_group="0",
            )  # fmt: skip
            item = build.op("aten::item", at + 600_000, at + 950_000, step=step)
            build.span(
                "runtime",
                "cudaStreamSynchronize",
                at + 610_000,
                at + 620_000,
                op_id=item,
                step=step,
            )
            build.memory(at + 320_000, 1 << 20, address=step, op_id=mm, step=step)
        build.write(path)
    return path


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = ProfileBuilder()
    build.op("aten::mm", 0, 1000)
    return Path(build.write(tmp_path_factory.mktemp("cpu") / "run.tltrace"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(ProfileBuilder().write(tmp_path_factory.mktemp("empty") / "run.tltrace"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["profile", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def parsed(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    return json.loads(run(capsys, *arguments, "--json"))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("trace", ["gpu", "cpu", "empty"])
def test_every_view_is_text_and_json_of_every_trace(
    view: str, trace: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    path = request.getfixturevalue(trace)
    assert run(capsys, path, view).strip()
    parsed(capsys, path, view)


@pytest.mark.parametrize(
    ("view", "why"),
    [
        ("idle", "No device work was recorded"),
        ("kernels", "No device work was recorded"),
        ("launch", "No device work was recorded"),
        ("memory", "No allocation was recorded"),
        ("comm", "No collective was recorded"),
        ("roofline", "The shapes of 1 ops were not recorded"),
        ("findings", "Nothing stands out"),
    ],
)
def test_a_view_with_nothing_to_show_says_why_in_one_line(
    view: str, why: str, cpu: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, cpu, view)
    assert out.startswith(why)
    assert len(out.splitlines()) == 1


def test_the_overview_says_where_the_time_went(
    gpu: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, gpu)
    assert "steps   4, median 1.00 ms" in out
    assert "gemm" in out and "aten::mm" in out and "data_loading" in out
    found = parsed(capsys, gpu)
    assert found["device"][0]["busy_ns"] == 4 * 270_000
    assert found["steps"]["whole"]["duration_ns"] == 4_000_000


def test_ops_are_grouped_as_asked(gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "train.py:12" in run(capsys, gpu, "ops", "--by", "line")
    assert "net.fc" in run(capsys, gpu, "ops", "--by", "module")
    assert "[[512, 512], [512, 512]]" in run(capsys, gpu, "ops", "--by", "shape")
    (first,) = parsed(capsys, gpu, "ops", "--top", 1)["ops"]
    assert (first["name"], first["self_device_ns"]) == ("aten::mm", 4 * 170_000)


def test_steps_and_ranks_can_be_chosen(gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed(capsys, gpu, "steps", "--steps", "1:2", "--rank", 1)
    assert [step["step"] for step in found["steps"]] == [1]
    assert found["whole"]["duration_ns"] == 1_000_000
    assert parsed(capsys, gpu, "kernels", "--steps", "1:")["kernels"][0]["count"] == 3


def test_ranks_are_compared(gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = parsed(capsys, gpu, "comm")
    assert [wait["waited_ns"] for wait in found["ranks"]["waits"]] == [4 * 90_000, 0]
    assert [wait["last"] for wait in found["ranks"]["waits"]] == [0, 4]
    assert "straggler: rank 1 is the last" in run(capsys, gpu, "comm")
    assert "straggler" in run(capsys, gpu, "findings")


def test_limits_of_the_device_can_be_given(gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "limits: not known" in run(capsys, gpu, "roofline")
    assert "limits: A100 80GB" in run(capsys, gpu, "roofline", "--device", "A100-SXM4-80GB")
    (group,) = parsed(capsys, gpu, "roofline", "--peak-tflops", 10, "--bandwidth", 1000)["groups"]
    assert group["flops"] == 2 * 512**3
    assert group["roof_share"] == pytest.approx(2 * 512**3 / 170_000 / 1e3 / 10)


def test_the_device_flame_is_folded_stacks(gpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, gpu, "flame", "--side", "device")
    assert "net;fc;aten::mm;gemm 680000" in out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "7"], "has no rank 7; it has 0, 1"),
        (["--steps", "x"], "--steps takes FIRST:END"),
        (["--steps", "90:95"], "profiled are 0, 1, 2, 3"),
        (["roofline", "--device", "abacus"], "no limits of 'abacus' are known"),
    ],
)
def test_wrong_wishes_are_told_in_one_line(
    arguments: list[str], message: str, gpu: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(gpu), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_names_of_a_trace_cannot_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ProfileBuilder()
    op = build.op("aten::\x1b[31mmm", 0, 10)
    build.launched("evil\x1b]0;x\x07\nkernel", (1, 2), (3, 9), op_id=op)
    path = build.write(tmp_path / "run.tltrace")
    for view in VIEWS:
        assert "\x1b" not in run(capsys, path, view)
