"""Hugging Face's ``Trainer`` on a tiny model of random weights: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorded, line_of, place_of, same_weights

from tracelens import session as sessions
from tracelens.errors import NonFiniteError
from tracelens_torch import TraceCallback

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Scaled(GPT2LMHeadModel):
    """A language model whose head takes a logarithm from some step on."""

    bad_call = -1
    bad_evaluation = False
    calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = super().forward(*args, **kwargs)
        if self.training and self.calls == self.bad_call:
            result.loss = result.loss * torch.log(result.loss - result.loss - 1.0)  # here
        if not self.training and self.bad_evaluation:
            result.loss = torch.sqrt(-result.loss)  # evaluation
        self.calls += self.training
        return result


def model_of(**made: Any) -> Scaled:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = Scaled(config)
    for name, value in made.items():
        setattr(model, name, value)
    return model


def rows(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 32, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def train(
    tmp_path: Path, *callbacks: Any, model: Any = None, resume: str | None = None, **arguments: Any
) -> Any:
    model = model or model_of()
    given = {"num_train_epochs": 2, "logging_steps": 1, "save_strategy": "no", **arguments}
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path / "out"),
            per_device_train_batch_size=4,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            learning_rate=0.01,
            remove_unused_columns=False,
            label_names=["labels"],
            **given,
        ),
        train_dataset=rows(16),
        eval_dataset=rows(8),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_nan_in_the_model_names_its_line_and_step(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    train(tmp_path, TraceCallback(path, quiet=True), model=model_of(bad_call=5))
    trace = Recorded(path)
    first = trace.errors[0]
    assert place_of(first) == (Path(__file__).name, line_of(Scaled))
    assert first["step"] == 5
    assert trace.failures == []


def test_steps_carry_what_the_trainer_logs(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    trainer = train(tmp_path, TraceCallback(path, quiet=True), eval_strategy="epoch")
    trace = Recorded(path)
    assert trace.errors == [] and trace.failures == []
    assert trace.numbers() == list(range(8))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert trace.scalar("loss") == pytest.approx([entry["loss"] for entry in logged])
    assert trace.scalar("learning_rate") == [entry["learning_rate"] for entry in logged]
    assert trace.scalar("eval_loss")[3] is not None and trace.scalar("eval_loss")[4] is None


def test_weights_are_the_same_with_and_without_the_callback(tmp_path: Path) -> None:
    plain = train(tmp_path).model
    with_callback = train(tmp_path, TraceCallback(tmp_path / "run.tltrace", quiet=True)).model
    assert same_weights(plain, with_callback)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    train(tmp_path, TraceCallback(path, quiet=True), gradient_accumulation_steps=2)
    assert Recorded(path).numbers() == list(range(4))


def test_evaluation_is_no_part_of_a_step_and_named_in_its_finding(tmp_path: Path) -> None:
    path, plain = tmp_path / "run.tltrace", tmp_path / "plain.tltrace"
    evaluated = {"eval_strategy": "steps", "eval_steps": 2}
    model = model_of(bad_evaluation=True)
    train(tmp_path, TraceCallback(path, quiet=True), model=model, **evaluated)
    trace = Recorded(path)
    assert place_of(trace.errors[0]) == (Path(__file__).name, line_of(Scaled, "# evaluation"))
    assert trace.errors[0]["sink"]["during"] == "evaluation"
    train(tmp_path, TraceCallback(plain, quiet=True))
    # Averaging the losses is a few ops, in or out of the step; a batch of evaluation is 60.
    for step, alone in zip(trace.steps, Recorded(plain).steps, strict=True):
        assert abs(step["n_ops"] - alone["n_ops"]) < 8


def test_a_resumed_training_goes_on_counting(tmp_path: Path) -> None:
    train(tmp_path, save_strategy="epoch", max_steps=4)
    path = tmp_path / "run.tltrace"
    resume = str(tmp_path / "out" / "checkpoint-4")
    train(tmp_path, TraceCallback(path, quiet=True), resume=resume)
    assert Recorded(path).numbers() == [4, 5, 6, 7]


def test_raise_ends_train_before_the_bad_update(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    model = model_of(bad_call=5)
    with pytest.raises(NonFiniteError, match="log"):
        train(tmp_path, TraceCallback(path, nonfinite="raise", quiet=True), model=model)
    assert sessions.current() is None
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_an_exception_passes_and_ends_the_recording(tmp_path: Path) -> None:
    class Broken(Scaled):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise KeyError("gone")

    path = tmp_path / "run.tltrace"
    with pytest.raises(KeyError, match="gone"):
        train(tmp_path, TraceCallback(path, quiet=True), model=Broken(model_of().config))
    assert sessions.current() is None
    notes = [note["message"] for note in Recorded(path).notes if note["kind"] == "exception"]
    assert notes == ["KeyError: 'gone'"]


def test_the_class_itself_may_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACELENS_DIR", str(tmp_path / "traces"))
    train(tmp_path, TraceCallback, max_steps=1)
    assert len(list((tmp_path / "traces").glob("*.tltrace"))) == 1
