"""Trainings that a library drives, without a framework: numbers, late scalars, asides, endings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tracelens as tl
from tracelens import session as sessions
from tracelens.errors import ConfigError
from tracelens.storage.reader import open_trace
from tracelens.training import Training, end_with


def steps_of(path: Path) -> list[dict[str, Any]]:
    with open_trace(path) as reader:
        return reader.steps()


def test_steps_begin_where_an_earlier_run_ended(tmp_path: Path) -> None:
    training = Training(tmp_path / "run.tltrace", quiet=True)
    assert training.begin() and not training.begin()
    training.start_at(40)
    training.step({"loss": 0.5})
    training.start_at(3)
    training.step({})
    training.end()
    assert [step["step"] for step in steps_of(tmp_path / "run.tltrace")] == [40, 41]
    assert sessions.current() is None


def test_late_scalars_are_the_last_steps_also_after_it_was_written(tmp_path: Path) -> None:
    training = Training(tmp_path / "run.tltrace", quiet=True)
    training.begin()
    training.start_at(0)
    training.step({"loss": 0.5})
    training.late({"at once": 1.0})
    session = sessions.current()
    assert session is not None
    session.note("data", "a note has the steps before it written")
    training.late({"val_loss": 0.25, "accuracy": 0.5})
    training.step({"loss": 0.4})
    training.end()
    first, second = steps_of(tmp_path / "run.tltrace")
    assert first["scalars"] == {"loss": 0.5, "at once": 1.0, "val_loss": 0.25, "accuracy": 0.5}
    assert second["scalars"] == {"loss": 0.4}
    assert tl.load(tmp_path / "run.tltrace").steps[0]["scalars"]["val_loss"] == 0.25


def test_a_loss_that_no_framework_computed_is_found_once(tmp_path: Path) -> None:
    training = Training(tmp_path / "run.tltrace", quiet=True)
    training.begin()
    training.start_at(0)
    training.step({})
    training.begin_aside("evaluation")
    training.late({"eval_loss": float("nan"), "lr": float("inf")})
    training.late({"eval_loss": float("nan")})
    training.end_aside()
    training.end()
    with open_trace(tmp_path / "run.tltrace") as reader:
        (finding,) = reader.findings()
    assert finding["sink"]["name"] == "eval_loss"
    assert finding["sink"]["during"] == "evaluation"


def test_asides_do_not_nest_and_end_with_the_step(tmp_path: Path) -> None:
    training = Training(tmp_path / "run.tltrace", quiet=True)
    training.begin()
    training.start_at(0)
    session = sessions.current()
    assert session is not None
    training.begin_aside("the sanity check")
    training.begin_aside("validation")
    assert session.clock.aside == "the sanity check"
    training.step({})
    assert session.clock.aside == ""
    training.end()


def test_only_numbers_ride_along(tmp_path: Path) -> None:
    training = Training(tmp_path / "run.tltrace", quiet=True)
    values = {"a": 1, "b": True, "c": "x", "d": None, "e": [1.0], "f": 2.5}
    assert training.numbers(values) == {"a": 1.0, "f": 2.5}


def test_an_unknown_setting_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no setting 'captures', but capture, nonfinite"):
        Training(tmp_path / "run.tltrace", captures="ops")


def test_a_failing_hook_is_a_note(tmp_path: Path) -> None:
    training = Training(tmp_path / "run.tltrace", quiet=True)
    training.begin()
    training.start_at("three")  # type: ignore[arg-type]
    training.end()
    with open_trace(tmp_path / "run.tltrace") as reader:
        assert [note["kind"] for note in reader.notes()] == ["hook_failed"]


def test_an_exception_that_leaves_the_method_ends_the_recording(tmp_path: Path) -> None:
    class Library:
        def __init__(self, training: Training) -> None:
            self.training = training

        def run(self) -> None:
            self.training.begin()
            raise KeyError("gone")

    end_with(Library, "run", lambda library: [library.training])
    end_with(Library, "run", lambda library: [library.training])
    with pytest.raises(KeyError):
        Library(Training(tmp_path / "run.tltrace", quiet=True)).run()
    assert sessions.current() is None


def test_switched_off_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACELENS", "0")
    training = Training(tmp_path / "run.tltrace")
    assert not training.begin()
    training.step({"loss": 1.0})
    training.end()
    assert not (tmp_path / "run.tltrace").exists()


def test_wrong_settings_are_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="capture"):
        Training("run.tltrace", capture="all")


def test_a_loss_that_turns_bad_again_is_news_and_one_that_stays_bad_is_not(tmp_path: Path) -> None:
    training = Training(tmp_path / "run.tltrace", quiet=True)
    training.begin()
    training.start_at(0)
    for loss in (float("nan"), float("nan"), 0.5, float("inf"), float("inf")):
        training.step({})
        training.late({"eval_loss": loss})
    training.end()
    with open_trace(tmp_path / "run.tltrace") as reader:
        reported = {sink["step"] for sink in reader.sinks()}
    assert {1, 4} <= reported and not reported & {2, 3}
