"""Optimizers that are given a closure: its gradients are looked at before they are applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorded, line_of, place_of, same_weights
from torch import nn

import tracelens as tl
from tracelens.errors import NonFiniteError

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
}


def train(kind: str, *, bad_step: int = -1, keyword: bool = False) -> Any:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = OPTIMIZERS[kind](model.parameters())
    x = torch.rand(8, 4)
    now = {"step": 0}

    def closure() -> Any:
        """Make the gradients."""
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if now["step"] == bad_step:
            loss = loss + torch.sqrt(loss - loss)  # here
        loss.backward()
        return loss

    for step in range(4):
        now["step"] = step
        optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    return model


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_bad_gradient_is_found_in_its_step(tmp_path: Path, kind: str, keyword: bool) -> None:
    with tl.trace(tmp_path / "run.tltrace", quiet=True):
        train(kind, bad_step=2, keyword=keyword)
    trace = Recorded(tmp_path / "run.tltrace")
    first = trace.errors[0]
    assert place_of(first) == (Path(__file__).name, line_of(train))
    assert (first["sink"]["sink"], first["step"]) == ("gradient", 2)
    assert first["first_cause"]["phase"] == "backward"
    assert trace.failures == []


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_raise_comes_before_the_update(tmp_path: Path, kind: str) -> None:
    session = tl.trace(tmp_path / "run.tltrace", quiet=True, nonfinite="raise")
    with pytest.raises(NonFiniteError, match="sqrt"), session:
        train(kind, bad_step=0)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_are_the_same_with_and_without_a_recording(tmp_path: Path, kind: str) -> None:
    plain = train(kind)
    with tl.trace(tmp_path / "run.tltrace", quiet=True):
        seen = train(kind)
    assert same_weights(plain, seen)
    assert Recorded(tmp_path / "run.tltrace").numbers() == [0, 1, 2, 3]


def test_what_a_closure_does_has_the_phases_of_a_loop(tmp_path: Path) -> None:
    with tl.trace(tmp_path / "run.tltrace", quiet=True, capture="ops"):
        train("SGD")
    phases = {op.name: op.phase.label for op in tl.load(tmp_path / "run.tltrace").ops}
    assert phases["aten::tanh"] == "forward"
    assert phases["aten::tanh_backward"] == "backward"
