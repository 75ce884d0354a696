"""Lightning: steps, scalars, findings and exceptions of a recorded ``fit``."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorded, line_of, place_of, same_weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracelens as tl
from tracelens import session as sessions
from tracelens.errors import NonFiniteError
from tracelens_torch import TraceCallback

pytest.importorskip("lightning")
import lightning.pytorch
import pytorch_lightning

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def module_of(package: Any) -> type:
    class Regression(package.LightningModule):
        def __init__(
            self, bad_step: int = -1, bad_validation: bool = False, bad_gradient: int = -1
        ) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
            self.bad_step, self.bad_validation = bad_step, bad_validation
            self.bad_gradient = bad_gradient

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            error = self.net(x) - y
            if self.global_step == self.bad_step:
                error = torch.sqrt(-error.abs())  # here
            loss = (error**2).mean()
            if self.global_step == self.bad_gradient:
                loss = loss + torch.sqrt(loss - loss)  # gradient
            self.log("train_mae", error.abs().mean(), on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            error = (self.net(x) - y).abs().mean()
            if self.bad_validation and not self.trainer.sanity_checking:
                error = torch.log(-error)  # validation
            self.log("val_mae", float(error))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    return Regression


Regression = module_of(lightning.pytorch)


def loader(batches: int = 4) -> DataLoader[Any]:
    x = torch.rand(8 * batches, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)


def fit(
    tmp_path: Path,
    *callbacks: Any,
    model: Any = None,
    package: Any = lightning.pytorch,
    checkpoint: str | None = None,
    **settings: Any,
) -> Any:
    torch.manual_seed(7)
    model = model or Regression()
    trainer = package.Trainer(
        **{"max_epochs": 2, "logger": False, "enable_checkpointing": False, **settings},
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    torch.manual_seed(7)
    trainer.fit(model, loader(), loader(2), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning])
def test_a_nan_in_a_lightning_step_names_its_line_and_step(tmp_path: Path, package: Any) -> None:
    kind = module_of(package)
    path = tmp_path / "run.tltrace"
    fit(tmp_path, TraceCallback(path, quiet=True), model=kind(bad_step=5), package=package)
    trace = Recorded(path)
    first = trace.errors[0]
    assert place_of(first) == (Path(__file__).name, line_of(kind))
    assert first["step"] == 5
    assert first["first_cause"]["op"] == "aten::sqrt"
    assert trace.failures == []


def test_steps_carry_the_loss_the_rate_and_what_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    fit(tmp_path, TraceCallback(path, quiet=True))
    trace = Recorded(path)
    assert trace.errors == [] and trace.failures == []
    assert trace.numbers() == list(range(8))
    assert all(isinstance(loss, float) for loss in trace.scalar("loss"))
    assert all(isinstance(mae, float) for mae in trace.scalar("train_mae_step"))
    assert trace.scalar("lr") == pytest.approx([0.1] * 4 + [0.05] * 4)
    epochs = trace.scalar("train_mae_epoch")
    assert epochs[3] is not None and epochs[7] is not None and epochs[0] is None
    assert trace.scalar("val_mae")[3] is not None


def test_weights_are_the_same_with_and_without_the_callback(tmp_path: Path) -> None:
    plain = fit(tmp_path).model
    path = tmp_path / "run.tltrace"
    assert same_weights(plain, fit(tmp_path, TraceCallback(path, quiet=True)).model)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    fit(tmp_path, TraceCallback(path, quiet=True), accumulate_grad_batches=2)
    assert Recorded(path).numbers() == list(range(4))


def test_validation_is_no_part_of_a_step_and_named_in_its_finding(tmp_path: Path) -> None:
    path, plain = tmp_path / "run.tltrace", tmp_path / "plain.tltrace"
    fit(tmp_path, TraceCallback(path, quiet=True), model=Regression(bad_validation=True))
    trace = Recorded(path)
    assert place_of(trace.errors[0]) == (Path(__file__).name, line_of(Regression, "# validation"))
    assert trace.errors[0]["sink"]["during"] == "validation"
    fit(tmp_path, TraceCallback(plain, quiet=True), limit_val_batches=0)
    plainly = Recorded(plain)
    # Around its hooks Lightning does a few ops of its own; two batches of validation are 30 more.
    for step, alone in zip(trace.steps, plainly.steps, strict=True):
        assert 0 <= step["n_ops"] - alone["n_ops"] < 8


def test_a_resumed_fit_goes_on_counting(tmp_path: Path) -> None:
    trainer = fit(tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    path = tmp_path / "run.tltrace"
    callback = TraceCallback(path, quiet=True)
    fit(tmp_path, callback, checkpoint=str(tmp_path / "half.ckpt"))
    assert Recorded(path).numbers() == [4, 5, 6, 7]


def test_raise_ends_fit_before_the_bad_update(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    model = Regression(bad_step=5)
    with pytest.raises(NonFiniteError, match="sqrt"):
        fit(tmp_path, TraceCallback(path, nonfinite="raise", quiet=True), model=model)
    assert sessions.current() is None
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_bad_gradient_is_found_before_it_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    model = Regression(bad_gradient=5)
    with pytest.raises(NonFiniteError, match="sqrt") as caught:
        fit(tmp_path, TraceCallback(path, nonfinite="raise", quiet=True), model=model)
    report = caught.value.report
    assert place_of(report) == (Path(__file__).name, line_of(Regression, "# gradient"))
    assert report["sink"]["sink"] == "gradient"
    assert (report["first_cause"]["phase"], report["step"]) == ("backward", 5)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_an_exception_of_the_program_passes_and_ends_the_recording(tmp_path: Path) -> None:
    class Broken(Regression):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise KeyError("gone")

    path = tmp_path / "run.tltrace"
    with pytest.raises(KeyError, match="gone"):
        fit(tmp_path, TraceCallback(path, quiet=True), model=Broken())
    assert sessions.current() is None
    notes = Recorded(path).notes
    assert [note["message"] for note in notes if note["kind"] == "exception"] == [
        "KeyError: 'gone'"
    ]


def test_a_session_that_is_open_gets_the_steps(tmp_path: Path) -> None:
    path = tmp_path / "mine.tltrace"
    with tl.trace(path, quiet=True) as session:
        fit(tmp_path, TraceCallback(tmp_path / "unused.tltrace"))
        assert sessions.current() is session
    assert not (tmp_path / "unused.tltrace").exists()
    assert Recorded(path).scalar("train_mae_step")[0] is not None


def test_a_second_fit_is_recorded_beside_the_first(tmp_path: Path) -> None:
    callback = TraceCallback(tmp_path / "run.tltrace", quiet=True)
    fit(tmp_path, callback, max_epochs=1)
    fit(tmp_path, callback, max_epochs=1)
    assert Recorded(tmp_path / "run-2.tltrace").numbers() == [0, 1, 2, 3]


def test_two_optimizers_are_one_step_a_batch(tmp_path: Path) -> None:
    class Adversaries(lightning.pytorch.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.one, self.two = nn.Linear(4, 1), nn.Linear(4, 1)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer, net in zip(self.optimizers(), (self.one, self.two), strict=True):
                optimizer.zero_grad()
                self.manual_backward((net(batch[0]) - batch[1]).square().mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(net.parameters(), 0.1) for net in (self.one, self.two)]

    path = tmp_path / "run.tltrace"
    fit(tmp_path, TraceCallback(path, quiet=True), model=Adversaries(), limit_val_batches=0)
    assert Recorded(path).numbers() == list(range(8))


def test_the_callback_travels_to_other_processes(tmp_path: Path) -> None:
    callback = TraceCallback(tmp_path / "run.tltrace", quiet=True)
    fit(tmp_path, callback, max_epochs=1, limit_train_batches=1)
    copy = pickle.loads(pickle.dumps(callback))
    assert isinstance(copy, lightning.pytorch.Callback)
    fit(tmp_path / "elsewhere", TraceCallback(tmp_path / "b.tltrace", quiet=True), max_epochs=1)


@pytest.mark.parametrize(("method", "during"), [("validate", "validation"), ("test", "the test")])
def test_a_bad_loss_outside_of_a_training_is_found(
    tmp_path: Path, method: str, during: str
) -> None:
    class Evaluated(lightning.pytorch.LightningModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", torch.log(-batch[0].mean()))  # here

        test_step = validation_step

    path = tmp_path / "run.tltrace"
    trainer = lightning.pytorch.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[TraceCallback(path, quiet=True)],
    )
    getattr(trainer, method)(Evaluated(), loader(1), verbose=False)
    (finding,) = Recorded(path).errors
    assert place_of(finding) == (Path(__file__).name, line_of(Evaluated))
    assert finding["sink"]["during"] == during


def test_a_nan_of_the_loader_names_the_users_line(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    x = torch.rand(16, 4)
    x[9, 2] = torch.nan
    trainer = lightning.pytorch.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[TraceCallback(path, quiet=True)],
    )
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
    trainer.fit(Regression(), data)  # drawn here
    expected = line_of(test_a_nan_of_the_loader_names_the_users_line, "# drawn")
    finding = Recorded(path).errors[0]
    assert (finding["step"], place_of(finding)) == (1, (Path(__file__).name, expected))
