"""DataLoader batches as ops of phase ``data``, so that a bad value in one has a producer.

Two methods of the loaders' common base class are wrapped while a session records:
``__next__``, where the main process receives a batch (from a worker or its own), and
``_next_index``, where the sampler is asked for the next indices. What the program sees is
unchanged, and no batch is kept alive.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import dataloader as torch_dataloader

from tracelens_torch import rerun
from tracelens_torch.batches import batch_size, plain_indices, tensors_in

if TYPE_CHECKING:
    from tracelens.session import Session

KEPT_BATCHES = 256
"""Batches of the last steps whose ``data`` event waits for a finding (guard level)."""

_Iter = torch_dataloader._BaseDataLoaderIter


class DataEngine(Protocol):
    """What the data side needs of a capture engine."""

    def register_data(self, tensors: list[torch.Tensor], name: str) -> int:
        """Write an op of phase ``data`` whose outputs are the tensors; return its id."""


class _Indices:
    """Which indices each outstanding task of one loader iterator was sent with."""

    __slots__ = ("by_task", "latest")

    def __init__(self) -> None:
        self.latest: Any = None
        self.by_task: dict[int, Any] = {}


class BatchInfo:
    """One batch as it will be told, and weak references to its tensors."""

    __slots__ = ("event", "tensors", "written")

    def __init__(self, event: dict[str, Any], tensors: list[torch.Tensor]) -> None:
        self.event = event
        self.tensors = [weakref.ref(tensor) for tensor in tensors]
        self.written = False

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether the very tensor object came in this batch."""
        return any(reference() is tensor for reference in self.tensors)


class DataWatch:
    """The wrapping of the loaders for one session. Calling it takes the wrapping off again.

    Args:
        engine: where batches are registered; replace the attribute to change engines.
        session: the recording.

    Attributes:
        fetched: how many batches the main process has received.
    """

    def __init__(self, engine: DataEngine, session: Session) -> None:
        self.engine = engine
        self.fetched = 0
        self._session = session
        self._recent: deque[BatchInfo] = deque(maxlen=KEPT_BATCHES)
        self._indices: weakref.WeakKeyDictionary[Any, _Indices] = weakref.WeakKeyDictionary()
        self._eager = session.config.capture != "guard"
        self._failed = False
        self._next = _Iter.__next__
        self._next_index = _Iter._next_index
        self._installed = False

    def install(self) -> None:
        """Wrap the loaders' base class."""
        watch = self
        original_next, original_index = self._next, self._next_index

        def __next__(iterator: Any) -> Any:
            replay = rerun.active()
            if replay is not None:
                replay.at_fetch()
            outstanding = watch._outstanding(iterator)
            batch = original_next(iterator)
            watch._received(iterator, batch, outstanding)
            return batch

        def _next_index(iterator: Any) -> Any:
            index = original_index(iterator)
            watch._asked(iterator, index)
            return index

        _Iter.__next__ = __next__
        _Iter._next_index = _next_index
        self._installed = True

    def __call__(self) -> None:
        """Restore the loaders; calling it again does nothing."""
        if self._installed:
            _Iter.__next__ = self._next
            _Iter._next_index = self._next_index
            self._installed = False

    def flush(self, first_step: int = 0, last_step: int | None = None) -> None:
        """Write the ``data`` events of these steps, if they are not yet written.

        At guard level nobody reads the batches of clean steps, so their events wait here until
        something is found.
        """
        for info in self._recent:
            step = info.event["step"]
            if step >= first_step and (last_step is None or step <= last_step):
                self._write(info)

    def find(self, tensor: torch.Tensor) -> dict[str, Any] | None:
        """Return the ``data`` event of the recent batch that the tensor object came in."""
        for info in reversed(self._recent):
            if info.holds(tensor):
                return info.event
        return None

    def tell_again(self, event: dict[str, Any], op_id: int, step: int) -> None:
        """Write a batch's event under the op that stands for it in a replay of a step."""
        self._session.event("data", **{**event, "op_id": op_id, "step": step})

    def _write(self, info: BatchInfo) -> None:
        if not info.written:
            info.written = True
            self._session.event("data", **info.event)

    def _asked(self, iterator: Any, index: Any) -> None:
        try:
            kept = self._indices.get(iterator)
            if kept is None:
                kept = self._indices[iterator] = _Indices()
            task = getattr(iterator, "_send_idx", None)
            if task is None:
                kept.latest = index
            else:
                if task == 0:
                    kept.by_task.clear()
                kept.by_task[task] = index
        except Exception as error:
            self._fail(error)

    def _outstanding(self, iterator: Any) -> frozenset[int] | None:
        """Return the tasks on their way, where their order of arrival is not fixed."""
        if getattr(iterator, "_in_order", True):
            return None
        return frozenset(iterator._task_info)

    def _received(self, iterator: Any, batch: Any, outstanding: frozenset[int] | None) -> None:
        try:
            self.fetched += 1
            tensors = tensors_in(batch)
            indices = self._indices_of(iterator, outstanding)
            event = {
                "step": self._session.current_step,
                "op_id": self.engine.register_data(tensors, "DataLoader"),
                "loader": "DataLoader",
                "batch_index": iterator._num_yielded - 1,
                "batch_size": batch_size(tensors, indices),
                "sample_indices": indices,
            }
            info = BatchInfo(event, tensors)
            self._recent.append(info)
            if self._eager:
                self._write(info)
        except Exception as error:
            self._fail(error)

    def _indices_of(self, iterator: Any, outstanding: frozenset[int] | None) -> list[int] | None:
        kept = self._indices.get(iterator)
        if kept is None:
            return None
        if not hasattr(iterator, "_send_idx"):
            index, kept.latest = kept.latest, None
        else:
            if outstanding is None:
                task = iterator._rcvd_idx - 1
                for older in [known for known in kept.by_task if known < task]:
                    del kept.by_task[older]
            else:
                task = next(iter(outstanding - frozenset(iterator._task_info)), -1)
            index = kept.by_task.pop(task, None)
        return None if index is None else plain_indices(index)

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._session.note(
                "hook_failed", f"a DataLoader batch could not be recorded: {error!r}", "warning"
            )


def install_data(engine: DataEngine, session: Session) -> DataWatch:
    """Begin to register DataLoader batches; the result, called, ends it.

    Args:
        engine: the capture engine that writes the ``data`` ops.
        session: the recording.
    """
    watch = DataWatch(engine, session)
    watch.install()
    return watch


def register_step_input(engine: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Give the tensors among a step's arguments a producer, if they have none; return its op id.

    Args:
        engine: the capture engine; one with ``value_id(tensor)`` is asked what it knows.
        args: positional arguments of the decorated step.
        kwargs: its keyword arguments.

    Returns:
        The id of the ``step_input`` op, -1 if every tensor had a producer.
    """
    value_id = getattr(engine, "value_id", None)
    unknown = [
        tensor
        for tensor in tensors_in((args, kwargs))
        if not isinstance(tensor, torch.nn.Parameter) and (value_id is None or value_id(tensor) < 0)
    ]
    return int(engine.register_data(unknown, "step_input")) if unknown else -1
