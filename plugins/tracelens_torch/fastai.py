"""fastai: a callback that records ``Learner.fit``."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from typing import Any

from tracelens.training import Training, end_with


class Events:
    """What a fastai ``Learner`` tells its callbacks: a step is a batch that it trains on.

    Args:
        path: the trace directory, which must not exist yet.
        **settings: those of `tracelens.trace`.
    """

    learn: Any

    def __init__(self, path: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        super().__init__()
        self.recording = Training(path, **settings)

    def before_fit(self) -> None:
        """Begin to record."""
        if self.recording.begin():
            self.recording.watch(self.learn.model)
        self.recording.start_at(0)

    def after_batch(self) -> None:
        """A batch ended."""
        if self.learn.training:
            lr = self.learn.opt.hypers[-1].get("lr")
            self.recording.step({"loss": self.learn.loss.detach(), "lr": lr})

    def before_validate(self) -> None:
        """Validation begins."""
        self.recording.begin_aside("validation")

    def after_validate(self) -> None:
        """Validation ended."""
        self.recording.end_aside()

    def after_epoch(self) -> None:
        """The row that fastai prints are scalars of the epoch's last step."""
        recorder = getattr(self.learn, "recorder", None)
        if recorder is not None:
            row = dict(zip(recorder.metric_names[1:], recorder.log[1:], strict=False))
            self.recording.late(self.recording.numbers(row))

    def after_fit(self) -> None:
        """End the recording."""
        self.recording.end()


def _trainings(learner: Any) -> Iterator[Training]:
    for callback in learner.cbs:
        if isinstance(callback, Events):
            yield callback.recording


@functools.lru_cache
def _made() -> type[Events]:
    callback = importlib.import_module("fastai.callback.core").Callback
    learner = importlib.import_module("fastai.learner")
    end_with(learner.Learner, "fit", _trainings)
    # After fastai's own recorder (order 50) and mixed precision: its numbers are there by then.
    return type("TraceCallback", (Events, callback), {"__doc__": Events.__doc__, "order": 70})


def __getattr__(name: str) -> type[Events]:
    if name != "TraceCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _made()
