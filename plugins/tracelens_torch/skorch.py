"""skorch: a callback that records ``fit``."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from typing import Any

from tracelens.training import Training, end_with


class Events:
    """What a skorch net tells its callbacks: a step is a batch that it trains on.

    The losses and scores that skorch keeps in its history are the steps' scalars; those of an
    epoch belong to its last step. ``partial_fit`` goes on counting where the net was.

    Args:
        path: the trace directory; where it exists, one beside it (``-2``, ``-3`` … in its name),
            since scikit-learn's searches train copies of a net and its callbacks.
        **settings: those of `tracelens.trace`.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        self.path = path
        self.settings = settings
        self.training = Training(path, beside=True, **settings)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return what makes another callback like this one (scikit-learn clones nets)."""
        return {"path": self.path, **self.settings}

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **more: Any) -> None:
        """Begin to record."""
        if self.training.begin():
            self.training.watch(net.module_)
        self.training.start_at(sum(len(batches) for batches in _trained(net)))

    def on_batch_begin(self, net: Any, batch: Any = None, training: Any = None, **_: Any) -> None:
        """A batch of training or of validation begins."""
        if training:
            self.training.end_aside()
        else:
            self.training.begin_aside("validation")

    def on_batch_end(self, net: Any, batch: Any = None, training: Any = None, **_: Any) -> None:
        """A batch ended."""
        if training:
            self.training.step(_renamed(self.training.numbers(net.history[-1, "batches", -1])))

    def on_epoch_end(self, net: Any, *datasets: Any, **more: Any) -> None:
        """Scores of the epoch are its last step's."""
        self.training.end_aside()
        epoch = {name: value for name, value in net.history[-1].items() if name != "epoch"}
        self.training.late(self.training.numbers(epoch))

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **more: Any) -> None:
        """End the recording."""
        self.training.end()


def _trained(net: Any) -> Iterator[list[Any]]:
    for epoch in net.history:
        yield [batch for batch in epoch.get("batches", ()) if "train_loss" in batch]


def _renamed(batch: dict[str, float]) -> dict[str, float]:
    return {"loss" if name == "train_loss" else name: value for name, value in batch.items()}


def _trainings(net: Any) -> Iterator[Training]:
    for _, callback in getattr(net, "callbacks_", ()):
        if isinstance(callback, Events):
            yield callback.training


@functools.lru_cache
def _made() -> type[Events]:
    skorch = importlib.import_module("skorch")
    end_with(skorch.NeuralNet, "partial_fit", _trainings)
    callback = importlib.import_module("skorch.callbacks").Callback
    return type("TraceCallback", (Events, callback), {"__doc__": Events.__doc__})


def __getattr__(name: str) -> type[Events]:
    if name != "TraceCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _made()
