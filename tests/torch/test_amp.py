"""An overflow that the scaler handles is normal; a bug behind a scaler is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_capture import ListSession, SmallCapture
from torch import nn

from tracelens_torch import amp
from tracelens_torch.replay import StepReplayer
from tracelens_torch.sentinel_engine import SentinelEngine


class Real:
    """What the watch reported as a real failure."""

    def __init__(self) -> None:
        self.hits: list[tuple[torch.optim.Optimizer, list[torch.Tensor]]] = []

    def __call__(self, optimizer: torch.optim.Optimizer, losses: list[torch.Tensor]) -> None:
        self.hits.append((optimizer, losses))


@pytest.fixture
def session() -> ListSession:
    return ListSession()


@pytest.fixture
def real(session: ListSession) -> Iterator[Real]:
    handler = Real()
    uninstall = amp.install_amp(session, handler)  # type: ignore[arg-type]
    yield handler
    uninstall()


def train(
    session: ListSession,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    *,
    steps: int = 3,
    init_scale: float = 2.0**16,
    optimizer_kind: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    unscale: bool = False,
    **options: Any,
) -> tuple[list[torch.Tensor], float]:
    torch.manual_seed(0)
    net = nn.Linear(8, 8)
    optimizer = optimizer_kind(net.parameters(), lr=1e-3, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    for number in range(steps):
        session.current_step = number
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            out = net(torch.ones(4, 8))
        scaler.scale(loss_of(out)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return [p.detach().clone() for p in net.parameters()], scaler.get_scale()


def overflowing(out: torch.Tensor) -> torch.Tensor:
    return (out * 3.0).float().sum()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_an_overflow_of_the_scaled_gradients_is_noted_as_handled(
    session: ListSession, real: Real, unscale: bool, options: dict[str, Any]
) -> None:
    train(session, overflowing, init_scale=2.0**13, unscale=unscale, **options)
    (note,) = session.notes("overflow_handled")
    assert (note["step"], note["severity"]) == (0, "info")
    assert "the scale is now 4096" in note["message"]
    assert real.hits == []


def test_a_clean_step_under_a_scaler_is_not_noted(session: ListSession, real: Real) -> None:
    train(session, overflowing, init_scale=4.0)
    assert session.of("note") == []


def test_a_non_finite_unscaled_loss_is_a_real_failure_told_once(
    session: ListSession, real: Real
) -> None:
    train(session, lambda out: torch.log(-out.float().square()).square().sum(), steps=4)
    assert len(real.hits) == 1
    assert [loss.isnan().item() for loss in real.hits[0][1]] == [True]
    assert session.notes("overflow_handled") == []
    assert "the loss itself is non-finite" in session.notes("amp")[0]["message"]


def test_skips_that_drive_the_scale_below_one_are_a_real_failure(
    session: ListSession, real: Real
) -> None:
    def sqrt_at_zero(out: torch.Tensor) -> torch.Tensor:
        return torch.sqrt((out.float() - out.float().detach()) ** 2).sum()

    train(session, sqrt_at_zero, steps=6, init_scale=8.0)
    assert len(real.hits) == 1
    assert [note["step"] for note in session.notes("overflow_handled")] == [0, 1, 2]
    (note,) = session.notes("amp")
    assert (note["step"], note["severity"]) == (3, "error")
    assert "4 skips in a row drive the scale below 1" in note["message"]


def test_after_a_good_update_skips_count_from_the_start(session: ListSession, real: Real) -> None:
    calls: list[int] = []

    def sometimes(out: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        zero = (out.float() - out.float().detach()) ** 2
        return torch.sqrt(zero if len(calls) % 2 else zero + 1).sum()

    train(session, sometimes, steps=6, init_scale=64.0)
    messages = [note["message"] for note in session.notes("overflow_handled")]
    assert len(messages) == 3
    assert all("1 in a row" in message for message in messages)


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_weights_and_scale_are_those_of_an_unwatched_scaler(options: dict[str, Any]) -> None:
    session = ListSession()
    plain = train(session, overflowing, init_scale=2.0**13, **options)
    uninstall = amp.install_amp(session)  # type: ignore[arg-type]
    watched = train(session, overflowing, init_scale=2.0**13, **options)
    uninstall()
    assert watched[1] == plain[1]
    assert all(torch.equal(a, b) for a, b in zip(watched[0], plain[0], strict=True))


def test_stopping_puts_the_scalers_own_methods_back(session: ListSession) -> None:
    before = [getattr(torch.amp.GradScaler, name) for name in ("scale", "step", "update")]
    uninstall = amp.install_amp(session)  # type: ignore[arg-type]
    uninstall()
    uninstall()
    assert [getattr(torch.amp.GradScaler, n) for n in ("scale", "step", "update")] == before


def test_a_disabled_scaler_is_left_alone(session: ListSession, real: Real) -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(net(torch.ones(1, 2)).log().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert session.of("note") == []


@pytest.mark.parametrize("unscale", [False, True])
def test_a_real_failure_is_replayed_without_touching_the_scaler(
    session: ListSession, unscale: bool
) -> None:
    engine = SentinelEngine(session, replayer=StepReplayer(session, SmallCapture))  # type: ignore[arg-type]
    watch = amp.install_amp(session, engine.hit_under_scaler)  # type: ignore[arg-type]
    engine.attach_scalers(watch)
    engine.start()
    try:
        torch.manual_seed(0)
        net = nn.Linear(8, 8)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=128.0)

        @engine.wrap
        def step(x: torch.Tensor) -> None:
            optimizer.zero_grad()
            out = net(x)
            scaler.scale(torch.log(-out.square()).square().sum()).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()

        engine.begin_step(0, True)
        step(torch.ones(4, 8))
        assert scaler.get_scale() == 64.0
        assert "equal: 2/2" in session.notes("replay")[0]["message"]
        assert session.captures[0].first_bad() == "log.default"  # type: ignore[attr-defined]
        sinks = session.of("sink")
        assert [sink["sink"] for sink in sinks][:1] == ["loss"]
        assert sinks[0]["value_id"] >= 0
    finally:
        engine.stop()
        watch()
