"""Hugging Face's ``Trainer``: its events, and its ``TraceCallback`` whatever is imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tracelens.training import Training, end_with

if TYPE_CHECKING:
    from tracelens_torch.callbacks import TraceCallback


class Events:
    """What ``Trainer`` tells its callbacks.

    A step is an update, after ``gradient_accumulation_steps`` batches; its number is the
    ``global_step`` that it began with, which comes with a checkpoint.
    """

    training: Training

    def on_init_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """A `Trainer` was made with this callback: it will not tell of exceptions by itself."""
        tell_of_exceptions()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **more: Any
    ) -> None:
        """Begin to record."""
        if self.training.begin(rank=args.process_index):
            self.training.watch(model)
        self.training.start_at(state.global_step)
        if args.eval_on_start:
            self.training.begin_aside("evaluation")

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """An evaluation before it has ended."""
        self.training.end_aside()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """A step ends; what `Trainer` logs of it comes right after this."""
        self.training.step({})
        self._evaluation(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """An evaluation may follow."""
        self._evaluation(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """An evaluation ended."""
        self.training.end_aside()

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """An evaluation that was announced and left out has ended too."""
        self.training.end_aside()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any
    ) -> None:
        """What is logged are scalars of the step before; `Trainer` has read them by now."""
        if logs and "train_runtime" not in logs:  # the summary at the end is of no step
            self.training.late(self.training.numbers(logs))

    def on_train_end(self, *states: Any, **more: Any) -> None:
        """End the recording. Lightning has an event of this name too, with a model: not this."""
        if len(states) == 3:
            self.training.end()

    def _evaluation(self, control: Any) -> None:
        # `Trainer`'s own callback, which comes first, has decided whether to evaluate.
        if control.should_evaluate:
            self.training.begin_aside("evaluation")


def bases(*, load: bool = False) -> tuple[type, ...]:
    """Return ``TrainerCallback`` if the program has imported it, or else transformers.

    Args:
        load: import what transformers itself imports late only.
    """
    module = sys.modules.get("transformers.trainer_callback")
    if module is None and load and "transformers" in sys.modules:
        module = importlib.import_module("transformers.trainer_callback")
    return () if module is None else (module.TrainerCallback,)


def tell_of_exceptions() -> None:
    """Let ``Trainer.train`` end recordings when an exception leaves it: no event does."""
    module = sys.modules.get("transformers.trainer")
    if module is not None:
        end_with(module.Trainer, "train", _trainings)


def _trainings(trainer: Any) -> Iterator[Training]:
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Events):
            yield callback.training


def __getattr__(name: str) -> type[TraceCallback]:
    if name != "TraceCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tracelens_torch.callbacks import accepted_by

    try:
        importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ImportError(
            "tracelens_torch.huggingface needs transformers: pip install transformers"
        ) from error
    return accepted_by(bases(load=True))
