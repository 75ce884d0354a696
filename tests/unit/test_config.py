from __future__ import annotations

from pathlib import Path

import pytest

import tracelens as tl
from tracelens.config import Config, enabled, trace_path
from tracelens.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capture": "all"}, "capture='all' is not one of guard, ops, tensors"),
        ({"nonfinite": None}, "nonfinite=None is not one of record, warn, raise, break"),
        ({"engine": "cuda"}, "engine='cuda' is not one of native, python, sentinel"),
        ({"schedule": 3}, "schedule= must be made by tl.schedule"),
        ({"tensors": [1]}, "tensors= must be a list of name patterns"),
        ({"tensor_budget_bytes": -1}, "tensor_budget_bytes= is negative"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tl.trace(**arguments)  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="level"):
        tl.trace(level="ops")  # type: ignore[call-overload]


@pytest.mark.parametrize("path", ["", 3, ["a"]])
def test_a_path_that_is_no_path_is_refused(path: object) -> None:
    with pytest.raises(ConfigError, match="the path must be a non-empty string or Path"):
        trace_path(path)


def test_the_environment_overrides_arguments() -> None:
    config = Config(capture="guard", nonfinite="record").with_environment(
        {"TRACELENS_CAPTURE": "ops", "TRACELENS_NONFINITE": "warn", "TRACELENS_ENGINE": "python"}
    )
    assert (config.capture, config.nonfinite, config.engine) == ("ops", "warn", "python")


def test_an_empty_variable_overrides_nothing() -> None:
    assert Config(capture="ops").with_environment({"TRACELENS_CAPTURE": ""}).capture == "ops"


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="environment variable TRACELENS_NONFINITE='stop'"):
        Config().with_environment({"TRACELENS_NONFINITE": "stop"})


@pytest.mark.parametrize("value", ["0", "off", "False", " no "])
def test_the_switch_turns_everything_off(value: str) -> None:
    assert not enabled({"TRACELENS": value})


@pytest.mark.parametrize("value", ["", "1", "on"])
def test_anything_else_leaves_it_on(value: str) -> None:
    assert enabled({"TRACELENS": value})


def test_a_config_without_schedule_records_every_step() -> None:
    assert Config().is_active(10**9)
    assert not Config(schedule=tl.schedule(active=1, repeat=1)).is_active(1)


def test_paths_of_any_kind_become_paths() -> None:
    assert trace_path("a.tltrace") == trace_path(Path("a.tltrace")) == Path("a.tltrace")
    assert trace_path(None) is None
