from __future__ import annotations

import pytest

import tracelens as tl
from tracelens.errors import ConfigError
from tracelens.schedules import steps_between


def active_steps(schedule: tl.Schedule, count: int) -> list[int]:
    return [step for step in range(count) if schedule.is_active(step)]


def test_a_cycle_waits_warms_up_and_then_records() -> None:
    assert active_steps(tl.schedule(wait=1, warmup=1, active=3), 10) == [2, 3, 4, 7, 8, 9]


def test_repeat_ends_the_recording_after_that_many_cycles() -> None:
    assert active_steps(tl.schedule(wait=1, active=1, repeat=2), 10) == [1, 3]


def test_skip_first_comes_before_the_first_cycle() -> None:
    assert active_steps(tl.schedule(wait=1, active=1, skip_first=3), 8) == [4, 6]


def test_without_wait_and_warmup_every_step_is_recorded() -> None:
    assert active_steps(tl.schedule(active=2), 5) == [0, 1, 2, 3, 4]


def test_a_range_of_steps_excludes_its_end() -> None:
    assert active_steps(steps_between(2, 4), 10) == [2, 3]


def test_an_empty_range_of_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds no step"):
        steps_between(4, 4)


@pytest.mark.parametrize("name", ["wait", "warmup", "active", "repeat", "skip_first"])
@pytest.mark.parametrize("value", [-1, 1.5, True, "1"])
def test_a_count_that_is_no_natural_number_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"schedule: {name} must be an integer"):
        tl.schedule(**{name: value})  # type: ignore[arg-type]


def test_a_schedule_that_records_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="active must be at least 1"):
        tl.schedule(active=0)


def test_the_cycle_agrees_with_torch_profiler() -> None:
    torch_profiler = pytest.importorskip("torch.profiler")
    arguments = {"wait": 2, "warmup": 1, "active": 2, "repeat": 2, "skip_first": 1}
    theirs = torch_profiler.schedule(**arguments)
    recording = {
        torch_profiler.ProfilerAction.RECORD,
        torch_profiler.ProfilerAction.RECORD_AND_SAVE,
    }
    expected = [step for step in range(20) if theirs(step) in recording]
    assert active_steps(tl.schedule(**arguments), 20) == expected
