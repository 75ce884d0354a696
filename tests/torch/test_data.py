"""DataLoader batches become ops of phase data, and the loaders behave as ever."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from small_capture import ListSession
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import tracelens as tl
from tracelens.storage.reader import open_trace
from tracelens_torch.batches import tensors_in
from tracelens_torch.data import DataWatch, install_data, register_step_input


class Squares(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((2,), float(index)), index


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(6.0).split(1))


@dataclass
class Labelled:
    x: torch.Tensor
    y: torch.Tensor


class Engine:
    def __init__(self) -> None:
        self.registered: list[tuple[str, list[tuple[int, ...]]]] = []

    def register_data(self, tensors: list[torch.Tensor], name: str) -> int:
        self.registered.append((name, [tuple(tensor.shape) for tensor in tensors]))
        return len(self.registered) - 1


@pytest.fixture
def watched() -> Iterator[tuple[DataWatch, Engine, ListSession]]:
    session, engine = ListSession(capture="ops"), Engine()
    watch = install_data(engine, session)  # type: ignore[arg-type]
    yield watch, engine, session
    watch()


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(Squares(), batch_size=4, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_batch_is_told_with_the_dataset_indices_of_its_samples(
    watched: Any, workers: int
) -> None:
    _, engine, session = watched
    torch.manual_seed(1)
    labels = [y.tolist() for _, y in loader(shuffle=True, num_workers=workers)]
    told = session.of("data")
    assert [event["sample_indices"] for event in told] == labels
    assert [event["batch_index"] for event in told] == [0, 1, 2]
    assert [event["batch_size"] for event in told] == [4, 4, 2]
    assert [event["op_id"] for event in told] == [0, 1, 2]
    assert engine.registered[0] == ("DataLoader", [(4, 2), (4,)])


def test_indices_stay_right_with_persistent_workers_and_an_epoch_left_early(watched: Any) -> None:
    _, _, session = watched
    batches = loader(shuffle=True, num_workers=2, persistent_workers=True)
    seen: list[list[int]] = []
    for epoch in range(3):
        for number, (_, y) in enumerate(batches):
            seen.append(y.tolist())
            if epoch == 1 and number == 0:
                break
    assert [event["sample_indices"] for event in session.of("data")] == seen


def test_indices_stay_right_when_workers_may_answer_out_of_order(watched: Any) -> None:
    _, _, session = watched
    seen = [y.tolist() for _, y in loader(num_workers=2, in_order=False)]
    assert [event["sample_indices"] for event in session.of("data")] == seen


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterable_dataset_has_no_indices(watched: Any, workers: int) -> None:
    _, _, session = watched
    list(DataLoader(Stream(), batch_size=4, num_workers=workers))
    told = session.of("data")
    assert [event["sample_indices"] for event in told] == [None] * len(told)
    assert told[0]["batch_size"] == 4


def test_a_loader_without_batches_and_a_custom_sampler_tell_their_indices(watched: Any) -> None:
    _, _, session = watched
    list(DataLoader(Squares(), batch_size=None, sampler=[7, 3]))
    assert [event["sample_indices"] for event in session.of("data")] == [[7], [3]]


def test_a_custom_collate_that_returns_a_dataclass_is_entered(watched: Any) -> None:
    _, engine, _ = watched

    def collate(samples: list[tuple[torch.Tensor, int]]) -> Labelled:
        return Labelled(torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples]))

    list(loader(collate_fn=collate))
    assert engine.registered[0] == ("DataLoader", [(4, 2), (4,)])


def test_the_batches_and_the_random_stream_are_those_of_an_unwatched_loader() -> None:
    def epoch() -> tuple[list[Any], torch.Tensor]:
        torch.manual_seed(3)
        return [x.tolist() for x, _ in loader(shuffle=True)], torch.get_rng_state()

    plain, plain_rng = epoch()
    uninstall = install_data(Engine(), ListSession())  # type: ignore[arg-type]
    watched, watched_rng = epoch()
    uninstall()
    again, _ = epoch()
    assert watched == plain == again
    assert torch.equal(watched_rng, plain_rng)


def test_stopping_puts_the_loaders_own_methods_back() -> None:
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    before = (_BaseDataLoaderIter.__next__, _BaseDataLoaderIter._next_index)
    uninstall = install_data(Engine(), ListSession())  # type: ignore[arg-type]
    assert _BaseDataLoaderIter.__next__ is not before[0]
    uninstall()
    uninstall()
    assert (_BaseDataLoaderIter.__next__, _BaseDataLoaderIter._next_index) == before


def test_no_batch_is_kept_alive(watched: Any) -> None:
    batches = iter(loader())
    batch = next(batches)
    reference = weakref.ref(batch[0])
    del batch
    gc.collect()
    assert reference() is None


def test_at_guard_level_the_events_of_clean_steps_are_never_written() -> None:
    session = ListSession(capture="guard")
    watch = install_data(Engine(), session)  # type: ignore[arg-type]
    for step, _ in enumerate(loader()):
        session.current_step = step + 1
    watch()
    assert session.of("data") == []
    watch.flush(1, 1)
    watch.flush(1, 1)
    assert [event["batch_index"] for event in session.of("data")] == [1]


def test_a_dataset_that_raises_raises_the_same_in_a_watched_loader(watched: Any) -> None:
    class Broken(Squares):
        def __getitem__(self, index: int) -> Any:
            raise KeyError("no such sample")

    with pytest.raises(KeyError, match="no such sample"):
        list(DataLoader(Broken()))


def test_an_engine_that_fails_costs_a_note_and_no_batch() -> None:
    class Failing(Engine):
        def register_data(self, tensors: list[torch.Tensor], name: str) -> int:
            raise RuntimeError("ring is gone")

    session = ListSession()
    uninstall = install_data(Failing(), session)  # type: ignore[arg-type]
    assert len(list(loader())) == 3
    uninstall()
    assert [note["severity"] for note in session.notes("hook_failed")] == ["warning"]


class Pair(NamedTuple):
    first: torch.Tensor
    second: Any


def test_tensors_are_found_once_each_in_any_nesting_and_modules_are_not_entered() -> None:
    a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    looped: list[Any] = [c]
    looped.append(looped)
    batch = {"p": Pair(a, [b, a]), "l": Labelled(b, c), "m": torch.nn.Linear(1, 1), "o": looped}
    assert [tuple(tensor.shape) for tensor in tensors_in(batch)] == [(1,), (2,), (3,)]


def test_a_steps_arguments_without_a_producer_get_one() -> None:
    known, new = torch.zeros(1), torch.ones(2)

    class Knowing(Engine):
        def value_id(self, tensor: torch.Tensor) -> int:
            return 5 if tensor is known else -1

    engine = Knowing()
    net = torch.nn.Linear(1, 1)
    assert register_step_input(engine, (net, known), {"y": {"z": new}}) == 0
    assert engine.registered == [("step_input", [(2,)])]
    assert register_step_input(engine, (known, net.weight), {}) == -1


@pytest.mark.parametrize("engine", [None, "sentinel"])
def test_a_bad_sample_is_named_by_its_index_in_the_dataset(
    tmp_path: Path, engine: str | None
) -> None:
    torch.manual_seed(0)
    samples = torch.randn(40, 8)
    samples[23, 3] = float("nan")
    net = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        net(batch).mean().backward()
        optimizer.step()

    path = tmp_path / "run.tltrace"
    with tl.trace(path, engine=engine, nonfinite="record", quiet=True):
        traced = tl.trace(step)
        for (batch,) in DataLoader(TensorDataset(samples), batch_size=10, shuffle=True):
            traced(batch)
    finding = open_trace(path).findings()[0]
    assert finding["first_cause"]["phase"] == "data"
    assert finding["data"]["sample_indices"] == [23]
