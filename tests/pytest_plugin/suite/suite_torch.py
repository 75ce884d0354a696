"""Tests of correct PyTorch models, as projects have them: none of them may raise an alarm.

They are full of what looks bad and is not: masks of -inf, running maxima that begin at -inf, logs
of zero that `where` does not take, overflows that a gradient scaler skips.
"""

from __future__ import annotations

import math
import unittest
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

STEPS = 8


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network that a session-scoped fixture has trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    train(model, torch.randn(256, 16), torch.randint(0, 4, (256,)))
    return model


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


class Attention(nn.Module):
    def __init__(self, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        mask = torch.full((time, time), float("-inf")).triu(1)
        return self.out(((scores + mask).softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Language(nn.Module):
    def __init__(self, words: int = 256, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, words)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def test_an_mlp_learns() -> None:
    model = nn.Sequential(
        nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8)
    )
    losses = train(model, torch.randn(512, 32), torch.randint(0, 8, (512,)), 20)
    assert losses[-1] < losses[0]


def test_a_convnet_with_batch_norm_learns() -> None:
    losses = train(Pictures(), torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,)))
    assert losses[-1] < losses[0]


def test_batch_norm_keeps_its_statistics_in_eval() -> None:
    model = Pictures().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    out = model(torch.randn(16, 3, 32, 32))
    assert out.shape == (16, 10)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_transformer_with_a_causal_mask_learns() -> None:
    model = Language()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    tokens = torch.randint(0, 256, (8, 65))
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_a_causal_mask_hides_the_future() -> None:
    model = Language().eval()
    tokens = torch.randint(0, 256, (4, 48))
    changed = tokens.clone()
    changed[:, 32:] = 0
    with torch.no_grad():
        assert torch.allclose(model(tokens)[:, :32], model(changed)[:, :32], atol=1e-5)


def test_attention_with_a_boolean_mask_is_pytorchs_own() -> None:
    q, k, v = torch.randn(3, 4, 8, 64, 32).unbind(0)
    mask = torch.ones(64, 64, dtype=torch.bool).tril()
    scores = (q @ k.transpose(-2, -1) / 32**0.5).masked_fill(~mask, float("-inf"))
    ours = scores.softmax(-1) @ v
    assert torch.allclose(ours, F.scaled_dot_product_attention(q, k, v, attn_mask=mask), atol=1e-5)


def test_padding_is_ignored_by_multi_head_attention() -> None:
    layer = nn.MultiheadAttention(64, 4, batch_first=True)
    x = torch.randn(8, 32, 64)
    padding = torch.arange(32).expand(8, 32) >= torch.randint(8, 32, (8, 1))
    out, weights = layer(x, x, x, key_padding_mask=padding)
    assert weights.masked_select(padding.unsqueeze(1)).abs().sum() == 0
    out.sum().backward()


def test_an_lstm_learns() -> None:
    lstm, head = nn.LSTM(16, 64, batch_first=True), nn.Linear(64, 2)
    optimizer = torch.optim.Adam([*lstm.parameters(), *head.parameters()], 1e-2)
    x, y = torch.randn(32, 24, 16), torch.randint(0, 2, (32,))
    first = last = 0.0
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(lstm(x)[0][:, -1]), y)
        loss.backward()
        optimizer.step()
        first, last = (loss.item(), loss.item()) if step == 0 else (first, loss.item())
    assert last < first


def test_bf16_autocast_is_near_float32() -> None:
    model = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))
    x = torch.randn(256, 128)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        near = model(x)
    assert torch.allclose(exact, near.float(), atol=0.1)
    near.float().square().mean().backward()


def test_a_scaler_skips_an_overflow() -> None:
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    x = torch.randn(64, 64)
    before = model.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(model(x).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() < 2.0**127
    assert torch.equal(model.weight, before)


def test_a_masked_softmax_sums_to_one() -> None:
    logits = torch.randn(64, 128, 128, requires_grad=True)
    mask = torch.rand(64, 128, 128) > 0.3
    mask[..., 0] = True
    weights = logits.masked_fill(~mask, -math.inf).softmax(-1)
    assert torch.allclose(weights.sum(-1), torch.ones(64, 128))
    (weights * torch.randn_like(weights)).sum().backward()


def test_logsumexp_is_stable() -> None:
    x = torch.tensor([1000.0, -1000.0, -math.inf])
    assert torch.logsumexp(x, 0).item() == pytest.approx(1000)
    running = torch.tensor(-math.inf)
    for part in torch.randn(40, 100):
        running = torch.logaddexp(running, part.logsumexp(0))
    assert torch.isfinite(running)


def test_a_checkpoint_gives_the_same_gradients() -> None:
    block = Block()
    x = torch.randn(4, 48, 128, requires_grad=True)
    block(x).sum().backward()
    plain = x.grad.clone()
    x.grad = None
    checkpoint(block, x, use_reentrant=False).sum().backward()
    assert torch.allclose(plain, x.grad, atol=1e-5)


def test_gradcheck_of_a_custom_function() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            return grad * 3 * x**2

    assert torch.autograd.gradcheck(
        Cube.apply, torch.randn(6, dtype=torch.float64, requires_grad=True)
    )


def test_entropy_is_safe_at_zero() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    safe = torch.where(p > 0, p, 1.0)
    entropy = -(p * torch.where(p > 0, safe.log(), 0.0)).sum(-1)
    entropy.sum().backward()
    assert entropy[1] == 0
    forward_only = torch.where(p.detach() > 0, p.detach() * p.detach().log(), 0.0)
    assert torch.allclose(-forward_only.sum(-1), entropy)


def test_beam_search_finds_the_best_path() -> None:
    scores = torch.full((3,), -math.inf)
    scores[0] = 0.0
    table = torch.randn(12, 3, 50).log_softmax(-1)
    for step in table:
        totals = (scores.unsqueeze(1) + step).flatten()
        scores, places = totals.topk(3)
        assert int(places.max()) < 150
    assert torch.isfinite(scores).all()


def test_missing_values_are_left_out() -> None:
    x = torch.tensor([[1.0, math.nan], [3.0, 4.0]])
    mean = torch.nan_to_num(x).sum(0) / (~torch.isnan(x)).sum(0)
    assert mean.tolist() == [2.0, 4.0]


def test_a_log_of_a_negative_number_is_nan() -> None:
    assert torch.log(torch.tensor([-1.0])).isnan().all()


def test_a_norm_that_may_be_infinite_is_asked_about() -> None:
    weight = torch.zeros(8, requires_grad=True)
    (weight * 1e38).exp().sum().backward()
    total = nn.utils.clip_grad_norm_([weight], 1.0)
    assert not torch.isfinite(total) or total >= 0


def test_a_loader_feeds_an_epoch() -> None:
    data = TensorDataset(torch.randn(256, 16), torch.randint(0, 2, (256,)))
    model = nn.Linear(16, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = 0
    for x, y in DataLoader(data, batch_size=32, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        seen += len(x)
    assert seen == 256


def test_early_stopping_keeps_the_best() -> None:
    best = torch.tensor(math.inf)
    for loss in torch.rand(30):
        best = torch.minimum(best, loss)
    assert best < 1


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, 2.0])
def test_a_loss_has_the_shape_asked_for(reduction: str, weight: float | None) -> None:
    scale = None if weight is None else torch.full((5,), weight)
    loss = F.cross_entropy(
        torch.randn(512, 5), torch.randint(0, 5, (512,)), scale, reduction=reduction
    )
    assert loss.shape == ((512,) if reduction == "none" else ())


def test_a_trained_network_answers(trained: nn.Module) -> None:
    with torch.no_grad():
        assert trained(torch.randn(8, 16)).softmax(-1).shape == (8, 4)


def test_a_trained_network_can_be_saved(trained: nn.Module, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    other = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    x = torch.randn(4, 16)
    assert torch.equal(trained(x), other(x))


class TestLayers(unittest.TestCase):
    def setUp(self) -> None:
        torch.manual_seed(0)
        self.x = torch.randn(64, 128)

    def test_dropout_is_the_identity_in_eval(self) -> None:
        self.assertTrue(torch.equal(nn.Dropout(0.5).eval()(self.x), self.x))

    def test_layer_norm_normalises(self) -> None:
        out = nn.LayerNorm(128)(self.x)
        self.assertLess(out.mean(-1).abs().max().item(), 1e-5)

    def test_an_embedding_is_a_table(self) -> None:
        table = nn.Embedding(100, 16)
        self.assertTrue(torch.equal(table(torch.tensor([3])), table.weight[3:4]))
