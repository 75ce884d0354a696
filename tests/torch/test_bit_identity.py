"""Watching changes no bit: losses, weights, gradients and random states, at every level."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import tracelens as tl
from tracelens import stats
from tracelens_torch.native import build

STEPS = 3


class Net(nn.Module):
    """Dropout, batch and layer norm, in-place ops, attention, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(0.3))
        self.mix = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = functional.relu_(self.norm(self.conv(x))).flatten(2)
        h = h + self.inner(h)
        mixed, _ = self.mix(h, h, h)
        h[:, 0].mul_(0.5)
        return functional.linear((h + mixed).mean(1), self.inner[0].weight)


def train() -> list[bytes]:
    """Train for some steps and return every bit that a program could see of it."""
    torch.manual_seed(0)
    np.random.seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen: list[torch.Tensor] = []
    for _ in range(STEPS):
        x, y = torch.randn(8, 1, 4, 4), torch.randint(0, 16, (8,))
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        seen += [loss.detach().clone(), *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
    seen += [value.clone() for value in model.state_dict().values()]
    bits = [tensor.numpy().tobytes() for tensor in seen]
    return [*bits, torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes()]


@pytest.fixture(scope="module")
def unwatched() -> list[bytes]:
    torch.set_num_threads(1)
    return train()


def test_the_loop_repeats_itself_at_all(unwatched: list[bytes]) -> None:
    assert train() == unwatched


@pytest.mark.parametrize("capture", ["guard", "ops", "tensors"])
@pytest.mark.parametrize("extension", [True, False], ids=["extension", "no-extension"])
def test_the_python_engine_changes_no_bit(
    capture: str,
    extension: bool,
    unwatched: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not extension:
        monkeypatch.setattr(stats, "native", None)
        monkeypatch.setattr(stats, "HAS_NATIVE", False)
    elif not stats.HAS_NATIVE:
        pytest.skip("the extension is not built")
    with watched(tmp_path, engine="python", capture=capture):
        assert train() == unwatched


@pytest.mark.native
@pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("capture", ["guard", "ops"])
def test_the_native_engine_changes_no_bit(
    capture: str, unwatched: list[bytes], tmp_path: Path
) -> None:
    with watched(tmp_path, engine="native", capture=capture):
        assert train() == unwatched


def test_the_sentinel_changes_no_bit(unwatched: list[bytes], tmp_path: Path) -> None:
    with watched(tmp_path, engine="sentinel"):
        assert train() == unwatched


def test_a_switched_off_decorator_changes_no_bit_and_writes_nothing(
    unwatched: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACELENS", "0")
    monkeypatch.chdir(tmp_path)
    loop: Callable[[], list[bytes]] = tl.trace(train)
    assert loop() == unwatched
    assert not list(tmp_path.iterdir())


def watched(path: Path, **options: Any) -> contextlib.AbstractContextManager[Any]:
    return tl.trace(path / "run.tltrace", quiet=True, **options)
