"""A bad step is run again: the op gets its name, and the training never notices."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_capture import ListSession, SmallCapture
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tracelens_torch import rerun
from tracelens_torch.data import install_data
from tracelens_torch.replay import StepReplayer
from tracelens_torch.sentinel_engine import SentinelEngine

BAD = 3


class Recorded:
    """A sentinel over a list session, with the step's begin and end around each call."""

    def __init__(self) -> None:
        self.session = ListSession()
        self.engine = SentinelEngine(
            self.session, replayer=StepReplayer(self.session, SmallCapture)
        )  # type: ignore[arg-type]
        self.engine.start()

    def steps(self, function: Callable[..., Any], batches: Any, *, wrap: bool = True) -> list[Any]:
        call = self.engine.wrap(function) if wrap else function
        results = []
        for number, batch in enumerate(batches):
            self.session.current_step = number
            self.engine.begin_step(number, True)
            results.append(call(batch, number))
            self.engine.end_step(number)
        return results

    @property
    def capture(self) -> SmallCapture:
        return self.session.captures[0]

    def note(self) -> str:
        return str(self.session.notes("replay")[0]["message"])

    def sink(self, kind: str) -> dict[str, Any]:
        return next(sink for sink in self.session.of("sink") if sink["sink"] == kind)


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    recording = Recorded()
    yield recording
    recording.engine.stop()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 1)
    )


def batches(count: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(12, 8, generator=generator) for _ in range(count)]


def trainer(
    net: nn.Module, spoil: Callable[[torch.Tensor], torch.Tensor], bad: int = BAD
) -> Callable[[torch.Tensor, int], float]:
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)

    def step(x: torch.Tensor, number: int) -> float:
        optimizer.zero_grad()
        out = net(x)
        if number == bad:
            out = spoil(out)
        loss = out.square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def bits(tensors: Any) -> list[bytes]:
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


def log_of_negative(out: torch.Tensor) -> torch.Tensor:
    return torch.log(out - 100.0)


def sqrt_at_zero(out: torch.Tensor) -> torch.Tensor:
    return torch.sqrt((out - out) ** 2) + out


def test_a_forward_nan_is_named_and_every_gradient_comes_out_bit_for_bit(
    recorded: Recorded,
) -> None:
    recorded.steps(trainer(network(), log_of_negative), batches())
    assert recorded.capture.first_bad() == "log.default"
    assert recorded.note().startswith("replay equal: 6/6 gradients, NaN throughout (step run")
    assert recorded.session.notes("replay")[0]["step"] == BAD
    assert recorded.sink("loss")["value_id"] >= 0
    assert "doubts" not in recorded.sink("gradient")


def test_a_backward_only_nan_is_named(recorded: Recorded) -> None:
    losses = recorded.steps(trainer(network(), sqrt_at_zero), batches(BAD + 1))
    assert np.isfinite(losses).all()
    sink = recorded.sink("gradient")
    assert recorded.capture.op_of(sink["value_id"]) in (
        "addmm.default",
        "mm.default",
        "sum.dim_IntList",
    )
    assert recorded.capture.first_bad() == "div.Tensor"
    assert "equal: 6/6" in recorded.note()


def test_a_hit_in_the_very_first_step_is_replayed_exactly(recorded: Recorded) -> None:
    recorded.steps(trainer(network(), log_of_negative, bad=0), batches(2))
    assert "equal: 6/6" in recorded.note()


def test_training_with_a_replayed_step_is_bit_identical_to_training_without() -> None:
    def train(recording: Recorded | None) -> list[bytes]:
        net = network()
        random.seed(1)
        np.random.seed(1)
        inner = trainer(net, sqrt_at_zero)
        noise: list[float] = []
        statistics: list[bytes] = []

        def step(x: torch.Tensor, number: int) -> float:
            noise.append(random.random() + np.random.rand())
            loss = inner(x * (1 + noise[-1]), number)
            statistics.extend(bits(net.buffers()))
            return loss

        if recording is None:
            losses = [step(x, number) for number, x in enumerate(batches())]
        else:
            losses = recording.steps(step, batches())
            recording.engine.stop()
        last = (random.random(), np.random.rand())
        return [
            *bits(net.state_dict().values()),
            *statistics,
            *bits(p.grad for p in net.parameters()),
            torch.get_rng_state().numpy().tobytes(),
            np.array(losses).tobytes(),
            np.array(last).tobytes(),
        ]

    recording = Recorded()
    assert train(recording) == train(None)
    assert "equal: 6/6" in recording.note()


def test_the_gradients_are_the_same_objects_after_a_replay(recorded: Recorded) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    seen: list[list[int]] = []

    def step(x: torch.Tensor, number: int) -> None:
        optimizer.zero_grad()
        log_of_negative(net(x)).mean().backward()
        seen.append([id(p.grad) for p in net.parameters()])
        optimizer.step()
        seen.append([id(p.grad) for p in net.parameters()])

    recorded.steps(step, batches(1))
    assert len(seen) == 3  # the replay ends where the optimizer would step
    assert seen[0] == seen[2]


def test_gradients_accumulated_over_decorated_calls_are_replayed_together(
    recorded: Recorded,
) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step(x: torch.Tensor, number: int) -> None:
        out = net(x)
        (log_of_negative(out) if number == 1 else out).mean().backward()
        if number % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()

    recorded.steps(step, batches(4))
    assert "equal: 6/6" in recorded.note()
    assert recorded.capture.data == [("step_input", 4)]


def test_a_loop_without_a_decorator_replays_the_model_with_the_kept_gradients(
    recorded: Recorded,
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sqrt_at_zero(self.body(x))

    recorded.steps(trainer(Net(), lambda out: out), batches(1), wrap=False)
    assert recorded.note().startswith("replay equal: 6/6 gradients, NaN throughout (model run")
    assert recorded.capture.first_bad() == "div.Tensor"


def test_micro_batches_without_a_decorator_are_replayed_together(recorded: Recorded) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step(x: torch.Tensor, number: int) -> None:
        for part in x.split(4):
            net(part).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    spoiled = batches(1)[0]
    spoiled[5, 0] = float("nan")
    recorded.steps(step, [spoiled], wrap=False)
    assert "equal: 6/6" in recorded.note()
    assert recorded.capture.data == [("step_input", 3)]


def test_a_step_that_fetches_its_own_data_replays_the_model_and_loses_no_batch(
    recorded: Recorded,
) -> None:
    watch = install_data(recorded.engine, recorded.session)  # type: ignore[arg-type]
    recorded.engine.attach(watch)
    try:
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        stream = iter(DataLoader(TensorDataset(torch.cat(batches(4))), batch_size=12))
        firsts: list[float] = []

        def step(_: Any, number: int) -> None:
            (x,) = next(stream)
            firsts.append(x[0, 0].item())
            optimizer.zero_grad()
            (sqrt_at_zero(net(x)) if number == 2 else net(x)).mean().backward()
            optimizer.step()

        recorded.steps(step, range(4))
        assert firsts == [x[0, 0].item() for x in batches(4)]
        assert "fetches its data itself" in recorded.note()
        assert "model run again" in recorded.note()
    finally:
        watch()


def test_a_step_that_reads_an_iterator_is_not_run_again(recorded: Recorded) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    left = iter(batches(2))

    def step(_: Any, number: int) -> None:
        optimizer.zero_grad()
        log_of_negative(net(next(left))).mean().backward()
        optimizer.step()

    recorded.engine.replayer._roots.keep = False
    recorded.steps(step, range(1))
    assert len(list(left)) == 1
    assert recorded.session.notes("replay")[0]["severity"] == "warning"


def test_an_input_changed_in_place_by_the_step_is_told(recorded: Recorded) -> None:
    net = network()
    inner = trainer(net, log_of_negative, bad=0)

    def step(x: torch.Tensor, number: int) -> None:
        x.add_(1.0)
        inner(x, number)

    recorded.steps(step, batches(1))
    assert "an input was changed in place" in recorded.note()
    assert any("in place" in doubt for doubt in recorded.sink("loss")["doubts"])


class TwoBranches(nn.Module):
    """One branch's gradients stay finite when the other's are not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.good = nn.Linear(8, 1)
        self.bad = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.good(x).square().mean() + sqrt_at_zero(self.bad(x)).mean()


def test_a_step_that_does_not_repeat_itself_is_called_not_equal(recorded: Recorded) -> None:
    calls: list[int] = []
    net = TwoBranches()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step(x: torch.Tensor, number: int) -> None:
        calls.append(number)
        optimizer.zero_grad()
        net(x * len(calls)).backward()
        optimizer.step()

    recorded.steps(step, batches(1))
    assert recorded.note().startswith("replay not equal: 2/4 gradients")
    assert "which gave 2 of 4 gradients" in recorded.sink("gradient")["doubts"][0]


def test_an_update_made_outside_the_decorated_call_is_replayed(recorded: Recorded) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def backward(x: torch.Tensor, number: int) -> None:
        log_of_negative(net(x)).mean().backward()

    call = recorded.engine.wrap(backward)
    recorded.engine.begin_step(0, True)
    call(batches(1)[0], 0)
    optimizer.step()
    assert "equal: 6/6" in recorded.note()


def test_a_step_that_raises_when_run_again_costs_a_note_and_nothing_else(
    recorded: Recorded,
) -> None:
    calls: list[int] = []
    net = network()
    inner = trainer(net, log_of_negative, bad=0)

    def step(x: torch.Tensor, number: int) -> float:
        calls.append(number)
        if len(calls) == 2:
            raise KeyError("only once")
        return inner(x, number)

    result = recorded.steps(step, batches(1))
    assert np.isnan(result[0])
    assert "replay impossible: the second run failed: KeyError" in recorded.note()
    assert recorded.sink("loss")["value_id"] == -1
    assert rerun.active() is None


def test_a_bare_except_in_the_step_does_not_make_the_replay_update(recorded: Recorded) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    updates: list[int] = []

    def step(x: torch.Tensor, number: int) -> None:
        optimizer.zero_grad()
        log_of_negative(net(x)).mean().backward()
        try:
            optimizer.step()
            updates.append(number)
        except Exception:
            updates.append(-1)

    recorded.steps(step, batches(1))
    assert updates == [0]


def test_an_optimizer_that_calls_the_step_itself_is_told_as_impossible(recorded: Recorded) -> None:
    net = network()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=1)

    def step(x: torch.Tensor, number: int) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = sqrt_at_zero(net(x)).mean()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]

    recorded.steps(step, batches(1))
    assert "replay impossible: the optimizer calls the step itself" in recorded.note()
    assert recorded.sink("gradient")["stats"]["nan"] > 0


def test_parameters_updated_during_backward_are_never_updated_twice(recorded: Recorded) -> None:
    net = network()
    last = net[4]
    assert isinstance(last, nn.Linear)
    optimizer = torch.optim.SGD(last.parameters(), 0.1)
    updates: list[int] = []
    last.weight.register_post_accumulate_grad_hook(lambda p: updates.append(1))

    def step(x: torch.Tensor, number: int) -> None:
        optimizer.zero_grad()
        log_of_negative(net(x)).mean().backward()
        optimizer.step()

    recorded.steps(step, batches(1))
    assert updates == [1]
    assert "updated during backward" in recorded.note()


def test_the_second_optimizer_of_a_step_replays_the_model_alone(recorded: Recorded) -> None:
    one, two = network(), network()
    first = torch.optim.SGD(one.parameters(), 0.1)
    second = torch.optim.SGD(two.parameters(), 0.1)

    def step(x: torch.Tensor, number: int) -> None:
        first.zero_grad()
        one(x).mean().backward()
        first.step()
        second.zero_grad()
        (sqrt_at_zero(two(x)) if number == 2 else two(x)).mean().backward()
        second.step()

    recorded.steps(step, batches(3))
    assert "another optimizer had already updated" in recorded.note()
    assert "replay" in recorded.note() and "model run again" in recorded.note()


def test_the_replay_runs_under_the_gradient_and_autocast_modes_the_step_began_with(
    recorded: Recorded,
) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step(x: torch.Tensor, number: int) -> None:
        optimizer.zero_grad()
        log_of_negative(net(x).float()).mean().backward()
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            optimizer.step()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        recorded.steps(step, batches(1))
    assert "equal: 6/6" in recorded.note()


def test_only_the_first_bad_step_is_replayed_once_the_parameters_are_bad(
    recorded: Recorded,
) -> None:
    recorded.steps(trainer(network(), log_of_negative, bad=1), batches())
    assert len(recorded.session.captures) == 1
    assert len(recorded.session.notes("replay")) == 1


def test_a_parameter_that_an_optimizer_made_bad_is_told_at_the_next_step(
    recorded: Recorded,
) -> None:
    net = network()
    inner = trainer(net, lambda out: out)

    def step(x: torch.Tensor, number: int) -> None:
        inner(x, number)
        if number == 1:
            with torch.no_grad():
                net[0].weight[0, 0] = float("inf")  # type: ignore[index]

    recorded.steps(step, batches(3))
    sink = recorded.sink("parameter")
    assert (sink["name"], sink["step"], sink["stats"]["posinf"]) == ("0.weight", 2, 1)
    assert "gradients were finite in step 1" in recorded.note()


def test_a_collective_in_the_step_stops_the_replay(recorded: Recorded, tmp_path: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)

        def step(x: torch.Tensor, number: int) -> None:
            optimizer.zero_grad()
            loss = log_of_negative(net(x)).mean()
            loss.backward()
            dist.all_reduce(loss.detach())
            optimizer.step()

        recorded.steps(step, batches(1))
        assert "calls a collective" in recorded.note()
    finally:
        dist.destroy_process_group()
