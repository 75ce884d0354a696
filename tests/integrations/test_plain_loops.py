"""Loops that need no callback: ``torch.optim`` alone, and with accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorded, line_of, place_of, same_weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracelens as tl


def parts() -> tuple[Any, Any, Any]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.rand(32, 4)
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
    return model, torch.optim.Adam(model.parameters()), loader


def plain(bad_batch: int = -1) -> Any:
    model, optimizer, loader = parts()
    for number, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        if number == bad_batch:
            loss = torch.sqrt(loss - loss)  # here
        loss.backward()
        optimizer.step()
    return model


def accelerated(bad_batch: int = -1, accumulate: int = 1) -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model, optimizer, loader = accelerator.prepare(*parts())
    for number, (x, y) in enumerate(loader):
        with accelerator.accumulate(model):
            loss = (model(x) - y).square().mean()
            if number == bad_batch:
                loss = torch.sqrt(loss - loss)  # here
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    return accelerator.unwrap_model(model)


LOOPS = {"plain": plain, "accelerate": accelerated}


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Any:
    if request.param == "accelerate":
        pytest.importorskip("accelerate")
    return LOOPS[request.param]


def recorded(path: Path, loop: Any, **how: Any) -> tuple[Recorded, Any]:
    with tl.trace(path, quiet=True):
        model = loop(**how)
    return Recorded(path), model


def test_each_update_of_a_loop_is_a_step(tmp_path: Path, loop: Any) -> None:
    trace, model = recorded(tmp_path / "run.tltrace", loop)
    assert trace.numbers() == list(range(8))
    assert trace.errors == [] and trace.failures == []
    assert same_weights(model, loop())


def test_a_bad_gradient_of_a_loop_names_its_line_and_step(tmp_path: Path, loop: Any) -> None:
    trace, _ = recorded(tmp_path / "run.tltrace", loop, bad_batch=5)
    assert place_of(trace.errors[0]) == (Path(__file__).name, line_of(loop))
    assert trace.errors[0]["step"] == 5


def test_batches_that_accelerate_accumulates_are_one_step(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    trace, _ = recorded(tmp_path / "run.tltrace", accelerated, accumulate=2)
    assert trace.numbers() == list(range(4))
    assert trace.errors == []
