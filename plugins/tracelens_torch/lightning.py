"""Lightning: the events of its trainer, and ``TraceCallback`` for programs that import it later.

``lightning`` and ``pytorch_lightning`` are two packages with two classes of the same name; both
are served.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens.training import Training

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


class Events:
    """What Lightning tells its callbacks.

    A step is a batch after which an optimizer has stepped; its number is Lightning's count of
    such batches, which is ``global_step`` where there is one optimizer, and comes with a
    checkpoint.
    """

    training: Training
    _updates = 0
    _lr: Any = None
    _numbered = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin to record: fit, validate, test or predict begins."""
        if self.training.begin(rank=trainer.global_rank):
            self.training.watch(pl_module)
            self._numbered = False

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the recording."""
        self.training.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the recording: an exception leaves the trainer."""
        self.training.end(exception)

    def on_train_batch_start(self, trainer: Any, *batch: Any) -> None:
        """The first batch tells where the count of steps stands."""
        if not self._numbered:
            self._numbered = True
            self._updates = trainer.global_step
            self.training.start_at(_steps_before(trainer))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """The learning rate of this step; schedulers change it before the batch ends."""
        self._lr = optimizer.param_groups[0].get("lr")

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, *batch: Any, **more: Any
    ) -> None:
        """A step ends, if an optimizer has stepped."""
        if trainer.global_step != self._updates:
            self._updates = trainer.global_step
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            scalars = {"loss": loss, "lr": self._lr}
            kept = {n: v for n, v in scalars.items() if _is_at_hand(v) or _reads_now(trainer)}
            self.training.step({**kept, **self._logged(trainer)})

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        """A few batches of validation before training begin."""
        self.training.begin_aside("the sanity check")

    def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
        """Training begins."""
        self.training.end_aside()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Validation begins."""
        self.training.begin_aside("validation")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Validation ended; its metrics are those of the step before it."""
        if not trainer.sanity_checking:
            self.training.late(self._logged(trainer))
            self.training.end_aside()

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """`Trainer.test` begins its batches."""
        self.training.begin_aside("the test")

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """`Trainer.test` ended; a bad loss of its own is found here."""
        self.training.late(self._logged(trainer))
        self.training.end_aside()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Means over the epoch are scalars of its last step."""
        self.training.late(self._logged(trainer))

    def _logged(self, trainer: Any) -> dict[str, float]:
        """Return what is logged; what lies on an accelerator only when Lightning reads it too."""
        try:
            metrics = dict(trainer.callback_metrics)
            if _reads_now(trainer):
                metrics = {name: _on_host(value) for name, value in metrics.items()}
            return self.training.numbers(metrics)
        except Exception as error:
            self.training.failed(error)
            return {}


def bases() -> tuple[type, ...]:
    """Return the ``Callback`` of each of Lightning's packages that the program has imported."""
    found = (getattr(sys.modules.get(name), "Callback", None) for name in _PACKAGES)
    return tuple(base for base in found if base is not None)


def _steps_before(trainer: Any) -> int:
    if trainer.lightning_module.automatic_optimization:
        return int(trainer.global_step)
    # A batch may have several optimizers' steps, each of which `global_step` counts.
    return int(getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", 0))


def _reads_now(trainer: Any) -> bool:
    """Tell whether Lightning's loggers read metrics after this batch (``log_every_n_steps``)."""
    connector = getattr(trainer, "_logger_connector", None)
    return bool(trainer.loggers) and bool(getattr(connector, "should_update_logs", False))


def _is_at_hand(value: Any) -> bool:
    """Tell whether reading a value makes no device wait."""
    return getattr(getattr(value, "device", None), "type", "cpu") == "cpu"


def _on_host(value: Any) -> Any:
    return value.detach().cpu() if hasattr(value, "detach") else value


def __getattr__(name: str) -> Any:
    if name != "TraceCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tracelens_torch.callbacks import accepted_by

    for package in _PACKAGES:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name not in ("lightning", "pytorch_lightning"):
                raise
    if not bases():
        raise ImportError("tracelens_torch.lightning needs Lightning: pip install lightning")
    return accepted_by(bases())
