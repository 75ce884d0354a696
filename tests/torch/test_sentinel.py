"""The sentinel's check, its hooks, and updates held back on the device."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_capture import ListSession, SmallCapture
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

from tracelens.errors import NonFiniteError
from tracelens_torch import sentinel as sentinel_module
from tracelens_torch.deferred import DeviceFlag
from tracelens_torch.nonfinite import FusedCheck, dense, describe, same_bits
from tracelens_torch.replay import StepReplayer
from tracelens_torch.sentinel_engine import SentinelEngine
from tracelens_torch.snapshots import BufferKeeper, HostRandom

INF = float("inf")
NAN = float("nan")


def engine_for(session: ListSession) -> SentinelEngine:
    return SentinelEngine(session, replayer=StepReplayer(session, SmallCapture))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 7, 16])
def test_the_fused_check_finds_one_bad_element(dtype: torch.dtype, bad: float, place: int) -> None:
    good = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    spoiled = torch.full((17,), torch.finfo(dtype).smallest_normal, dtype=dtype)
    check = FusedCheck()
    assert not check.any([good, spoiled])
    spoiled[place] = bad
    assert check.any([good, spoiled])


def test_the_fused_check_changes_no_bit_and_no_version() -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, -3.5, torch.finfo(torch.float32).max])
    before, version = values.clone(), values._version
    assert not FusedCheck().any([values, torch.tensor([1, 2])])
    assert same_bits(values, before)
    assert values._version == version


def test_a_sparse_gradient_is_checked_by_its_values() -> None:
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 3]]), torch.tensor([1.0, NAN]), (5,))
    values = dense(sparse)
    assert values is not None and FusedCheck().any([values])
    assert dense(torch.empty(2, device="meta")) is None


def test_a_bad_tensor_is_described_with_counts_limits_and_first_places() -> None:
    told = describe(torch.tensor([[1.0, NAN, INF], [-INF, -2.0, NAN]]))
    assert told == {
        "dtype": "float32",
        "shape": [2, 3],
        "stats": {"numel": 6, "nan": 2, "posinf": 1, "neginf": 1, "vmin": -2.0, "vmax": 1.0},
        "first_bad": [1, 2, 3, 5],
    }
    assert describe(torch.tensor([NAN]))["stats"]["vmin"] is None


def test_equal_bits_tell_negative_zero_and_nan_apart_from_what_they_are_not() -> None:
    assert same_bits(torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0]))
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
    assert same_bits(torch.tensor([NAN, 1.0]), torch.tensor([-NAN, 1.0]))
    assert not same_bits(torch.tensor([NAN, 1.0]), torch.tensor([NAN, NAN]))


def test_only_buffers_that_the_model_writes_are_copied_after_the_first_step() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    net.register_buffer("table", torch.arange(3.0))
    net.register_buffer("count", torch.zeros(1))
    keeper = BufferKeeper()
    keeper.take()
    keeper.see(net)
    first = keeper.copies
    net[0](torch.randn(4, 3))
    net.count.add_(1)  # type: ignore[operator, union-attr]
    keeper.take()
    written = [name for name, buffer in net.named_buffers() if buffer in keeper.copies]
    assert written == ["count", "0.running_mean", "0.running_var", "0.num_batches_tracked"]
    first.restore()
    assert net[0].running_mean.tolist() == [0, 0, 0]  # type: ignore[union-attr, operator]


def test_a_program_that_never_uses_numpys_generator_is_not_made_to_read_it() -> None:
    import random

    host = HostRandom()
    for _ in range(4):
        random.random()
        states = host.take()
    assert states[0] is not None and states[1] is None


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1)


def test_everything_the_sentinel_wrapped_is_put_back() -> None:
    before = (torch.autograd.backward, nn.Module.__call__)
    engine = engine_for(ListSession())
    engine.start()
    assert (torch.autograd.backward, nn.Module.__call__) != before
    engine.stop()
    engine.stop()
    assert (torch.autograd.backward, nn.Module.__call__) == before
    assert not any("Sentinel" in repr(hook) for hook in _global_optimizer_pre_hooks.values())


def test_a_watched_model_copies_and_pickles_as_ever() -> None:
    engine = engine_for(ListSession())
    engine.start()
    try:
        net = nn.Linear(2, 2)
        optimizer = sgd(net)
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
        assert same_bits(twin.weight, net.weight)
    finally:
        engine.stop()


def test_in_raise_mode_the_bad_update_is_not_applied() -> None:
    class Raising(ListSession):
        def explain_pending(self, *, act: bool = True) -> list[Any]:
            raise NonFiniteError("bad", {})

    session = Raising(nonfinite="raise")
    engine = engine_for(session)
    engine.start()
    try:
        net = nn.Linear(2, 2)
        before = net.weight.detach().clone()
        optimizer = sgd(net)
        engine.begin_step(0, True)
        (net(torch.ones(1, 2)) * NAN).sum().backward()
        with pytest.raises(NonFiniteError):
            optimizer.step()
        assert same_bits(net.weight, before)
    finally:
        engine.stop()


def test_a_failing_check_costs_one_note_and_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    session = ListSession()
    engine = engine_for(session)
    engine.start()
    try:
        monkeypatch.setattr(sentinel_module, "gradients_of", lambda optimizer: 1 / 0)
        net = nn.Linear(2, 2)
        optimizer = sgd(net)
        before = net.weight.detach().clone()
        for _ in range(2):
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert not same_bits(net.weight, before)
        assert len(session.notes("hook_failed")) == 1
    finally:
        engine.stop()


def test_a_device_flag_is_read_once_for_each_time_it_was_sent() -> None:
    flag = DeviceFlag(torch.device("cpu"))
    assert flag.read() is None
    FusedCheck().flag([torch.tensor([NAN])], flag.flag)
    assert flag.read() is None
    flag.post()
    assert flag.read() is True
    assert flag.read() is None
    flag.lower()
    flag.post()
    assert flag.read() is False


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_optimizer_holds_a_bad_update_back_until_it_is_judged(
    kind: Callable[..., torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same path as on CUDA: a fused CPU optimizer reads the flag as the device would.
    monkeypatch.setattr(sentinel_module, "can_defer", lambda optimizer, device: True)

    def train(engine: SentinelEngine | None, bad: int) -> list[bytes]:
        torch.manual_seed(0)
        net = nn.Linear(4, 1)
        optimizer = kind(net.parameters(), lr=0.1, fused=True)

        def step(x: torch.Tensor, number: int) -> None:
            optimizer.zero_grad()
            out = net(x)
            (torch.sqrt((out - out) ** 2) + out if number == bad else out).sum().backward()
            optimizer.step()

        call = engine.wrap(step) if engine else step
        for number in range(4):
            if engine:
                engine.begin_step(number, True)
            call(torch.randn(3, 4), number)
        if engine:
            engine.stop()
        assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")
        steps = [state["step"] for state in optimizer.state.values() if "step" in state]
        return [t.detach().numpy().tobytes() for t in [*net.parameters(), *steps]]

    for bad in (99, 2):
        session = ListSession()
        engine = engine_for(session)
        engine.start()
        assert train(engine, bad) == train(None, bad)
        if bad == 2:
            assert session.captures[0].first_bad() == "div.Tensor"  # type: ignore[attr-defined]
            assert [sink["step"] for sink in session.of("sink")] == [2]
            assert "held back" in session.notes("replay")[0]["message"]
        else:
            assert session.writer.events == []


def test_the_note_on_a_module_less_program_says_why_nothing_can_be_replayed() -> None:
    session = ListSession()
    engine = engine_for(session)
    engine.start()
    try:
        weight = torch.ones(2, requires_grad=True)
        optimizer = torch.optim.SGD([weight], 0.1)
        (weight * NAN).sum().backward()
        optimizer.step()
        (note,) = session.notes("replay")
        assert "no decorated step and no call of a model" in note["message"]
        assert session.of("sink")[-1]["name"] == "group 0 parameter 0"
    finally:
        engine.stop()
