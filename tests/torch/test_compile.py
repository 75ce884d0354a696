"""Compiled regions: noticed, left compiled, and named by running a bad step uncompiled."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

import tracelens as tl
from tracelens.storage.reader import open_trace
from tracelens_torch import backend as torch_backend
from tracelens_torch import compiled


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Any:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))


def run(
    path: Path | None, compile_with: str | None, *, shift_at: int, engine: str | None = None
) -> list[bytes]:
    net = network()

    def forward(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        bad = torch.log(net(x) + shift)
        return (bad**2).mean()

    call: Callable[..., torch.Tensor] = forward
    if compile_with is not None:
        call = torch.compile(forward, backend=compile_with)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)

    def step(x: torch.Tensor, shift: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = call(x, shift)
        loss.backward()
        optimizer.step()
        return loss.item()

    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 8, generator=generator) for _ in range(5)]
    shifts = [torch.tensor(-100.0 if n == shift_at else 100.0) for n in range(5)]
    if path is None:
        for x, shift in zip(batches, shifts, strict=True):
            step(x, shift)
    else:
        with tl.trace(path, engine=engine, nonfinite="record", quiet=True):
            traced = tl.trace(step)
            for x, shift in zip(batches, shifts, strict=True):
                traced(x, shift)
    return [p.detach().numpy().tobytes() for p in net.parameters()]


def why(path: Path) -> dict[str, Any]:
    findings = open_trace(path).findings()
    assert findings, open_trace(path).events("note")
    return dict(findings[0])


def notes(path: Path, kind: str) -> list[str]:
    return [e["message"] for e in open_trace(path).events("note") if e["kind"] == kind]


@pytest.mark.parametrize("engine", [None, "sentinel"])
@pytest.mark.parametrize("compile_with", ["eager", "aot_eager"])
def test_a_nan_in_a_compiled_region_is_named_with_the_users_line(
    tmp_path: Path, engine: str | None, compile_with: str
) -> None:
    path = tmp_path / "run.tltrace"
    run(path, compile_with, shift_at=3, engine=engine)
    cause = why(path)["first_cause"]
    assert (cause["op"], cause["phase"], cause["step"]) == ("aten::log", "forward", 3)
    assert cause["source"]["code"] == "bad = torch.log(net(x) + shift)"
    assert cause["source"]["file"] == __file__
    assert "replay equal: 4/4" in notes(path, "replay")[0]


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_nan_in_a_fused_cpu_kernel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    run(path, "inductor", shift_at=3)
    cause = why(path)["first_cause"]
    assert (cause["op"], cause["step"]) == ("aten::log", 3)
    assert cause["source"]["code"] == "bad = torch.log(net(x) + shift)"
    (note,) = notes(path, "compiled")
    assert f"forward at {__file__}" in note


@pytest.mark.parametrize("shift_at", [3, 99])
def test_weights_are_those_of_an_untraced_compiled_run(tmp_path: Path, shift_at: int) -> None:
    plain = run(None, "aot_eager", shift_at=shift_at)
    torch._dynamo.reset()
    assert run(tmp_path / "run.tltrace", "aot_eager", shift_at=shift_at) == plain


def test_tracing_adds_no_graph_and_no_graph_break(tmp_path: Path) -> None:
    run(None, "aot_eager", shift_at=99)
    plain = dict(counters["stats"]), dict(counters["frames"]), dict(counters["graph_break"])
    torch._dynamo.reset()
    counters.clear()
    run(tmp_path / "run.tltrace", "aot_eager", shift_at=99)
    traced = dict(counters["stats"]), dict(counters["frames"]), dict(counters["graph_break"])
    assert traced == plain


def test_a_clean_compiled_run_has_one_note_and_no_finding(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    run(path, "aot_eager", shift_at=99)
    assert len(notes(path, "compiled")) == 1
    assert open_trace(path).findings() == []


def test_a_run_without_compiled_regions_says_nothing_of_them(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    run(path, None, shift_at=99)
    assert notes(path, "compiled") == []


def test_functions_of_tracelens_are_kept_from_being_compiled() -> None:
    from tracelens_torch.parameters import gradients_of

    compiled.keep_out_of_dynamo()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    torch._dynamo.optimize("eager")(gradients_of)(optimizer)
    assert gradients_of.__code__ not in compiled.codes()
    assert torch_backend.TorchBackend.start.__code__ not in compiled.codes()
