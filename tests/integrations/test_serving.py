"""``tl.guard`` around torch models and functions: what it finds, raises, counts, leaves alone."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import Recorded, line_of, place_of
from torch import nn

import tracelens as tl
from tracelens import session as sessions
from tracelens.errors import ConfigError, NonFiniteError, NonFiniteWarning
from tracelens.serving_answers import Answers


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2, bias=False)
        nn.init.ones_(self.linear.weight)

    def forward(self, x: Any) -> Any:
        return {"score": torch.log(self.linear(x)), "input": x}  # here

    def generate(self, x: Any) -> Any:
        return torch.sqrt(x)  # generate


GOOD, BAD = torch.ones(2, 4), -torch.ones(2, 4)


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Answers]:
    """A fresh process as far as guards are concerned, which closes its session at the end."""
    monkeypatch.setenv("TRACELENS_DIR", str(tmp_path))
    fresh = Answers()
    monkeypatch.setattr("tracelens.serving.answers", fresh)
    yield fresh
    fresh.close()


def test_a_bad_answer_names_its_request_its_line_and_its_part(
    tmp_path: Path, answers: Answers
) -> None:
    model = tl.guard(Scorer(), path=tmp_path / "guard.tltrace")
    model(GOOD)
    with tl.serving.request("GET /score 7f3a"):
        assert bool(model(BAD)["score"].isnan().all())
    answers.close()
    trace = Recorded(tmp_path / "guard.tltrace")
    (finding,) = trace.errors
    assert place_of(finding) == (Path(__file__).name, line_of(Scorer))
    assert finding["first_cause"]["op"] == "aten::log"
    assert finding["sink"]["name"] == "Scorer.score"
    assert finding["sink"]["request"] == "GET /score 7f3a"
    assert trace.steps == [] and trace.failures == []


def test_one_cause_is_told_once_with_a_count(tmp_path: Path, answers: Answers) -> None:
    model = tl.guard(Scorer(), path=tmp_path / "guard.tltrace")
    for number in range(30):
        with tl.serving.request(number):
            model(BAD)
    answers.close()
    trace = Recorded(tmp_path / "guard.tltrace")
    assert len(trace.errors) == 1
    repeated = [note["message"] for note in trace.notes if note["kind"] == "repeated"]
    assert repeated[0].startswith("10 answers") and "request 9" in repeated[0]
    assert repeated[-1].startswith("30 answers")
    assert len(repeated) == 2


def test_a_server_that_runs_for_ever_does_not_grow(tmp_path: Path, answers: Answers) -> None:
    model = tl.guard(Scorer(), path=tmp_path / "guard.tltrace")
    for _ in range(2000):
        model(GOOD)
    events = tmp_path / "guard.tltrace" / "_live" / "r00000-0.events"
    strings = events.with_suffix(".strings")
    before = events.stat().st_size + strings.stat().st_size
    for _ in range(2000):
        model(GOOD)
    assert events.stat().st_size + strings.stat().st_size == before
    answers.close()
    assert Recorded(tmp_path / "guard.tltrace").steps == []


def test_raise_warn_and_functions_are_told_of_every_bad_answer(answers: Answers) -> None:
    told: list[dict[str, Any]] = []
    module = Scorer()
    with tl.serving.request("r1"), pytest.raises(NonFiniteError, match="in request r1") as caught:
        tl.guard(module, nonfinite="raise")(BAD)
    assert caught.value.report["first_cause"]["op"] == "aten::log"
    with pytest.warns(NonFiniteWarning, match="log"):
        tl.guard(module, name="warner", nonfinite="warn")(BAD)
    guarded = tl.guard(module, nonfinite=told.append)
    for _ in range(20):
        guarded(BAD)
    assert len(told) == 20
    assert told[-1]["severity"] == "error"


def test_requests_in_many_threads_do_not_mix(answers: Answers) -> None:
    seen: dict[str, str] = {}
    lock = threading.Lock()

    def keep(finding: dict[str, Any]) -> None:
        with lock:
            seen[tl.serving.current_request()] = finding["sink"]["request"]

    models = [tl.guard(Scorer(), name=f"model {i}", nonfinite=keep) for i in range(6)]
    together = threading.Barrier(6)

    def answer(number: int) -> None:
        with tl.serving.request(f"request {number}"):
            together.wait()
            for _ in range(5):
                models[number](BAD if number % 2 else GOOD)

    threads = [threading.Thread(target=answer, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {"request 1", "request 3", "request 5"}
    session = sessions.current()
    assert session is not None
    found = {f["sink"]["name"]: f["sink"]["request"] for f in session.findings}
    for number in (1, 3, 5):
        assert found.get(f"model {number}.score", f"request {number}") == f"request {number}"


def test_a_guarded_module_behaves_as_the_module(answers: Answers) -> None:
    module = Scorer()
    guarded = tl.guard(module)
    assert isinstance(guarded, Scorer)
    assert guarded.eval() is guarded and not module.training
    assert guarded.linear is module.linear
    assert guarded.state_dict().keys() == module.state_dict().keys()
    assert repr(guarded) == repr(module)
    guarded.threshold = 3
    assert module.threshold == 3  # type: ignore[comparison-overlap]
    assert torch.equal(guarded(GOOD)["score"], module(GOOD)["score"])
    assert type(copy.deepcopy(guarded)) is Scorer
    assert type(pickle.loads(pickle.dumps(guarded))) is Scorer
    sequence = tl.guard(nn.Sequential(module))
    assert len(sequence) == 1 and sequence[0] is module


def test_methods_that_answer_are_looked_at(answers: Answers) -> None:
    guarded = tl.guard(Scorer(), nonfinite="raise")
    with pytest.raises(NonFiniteError) as caught:
        guarded.generate(BAD)
    assert place_of(caught.value.report)[1] == line_of(Scorer, "# generate")


def test_functions_and_coroutines_are_guarded(answers: Answers) -> None:
    @tl.guard
    def double(x: Any) -> Any:
        """Twice as much."""
        return [2 * x]

    async def slow(x: Any) -> Any:
        await asyncio.sleep(0)
        return torch.log(x)

    assert double(3.0) == [6.0] and double.__doc__ == "Twice as much."
    told: list[dict[str, Any]] = []
    tl.guard(slow, nonfinite=told.append)
    asyncio.run(tl.guard(slow, nonfinite=told.append)(BAD))
    tl.guard(lambda x: x, nonfinite=told.append)(np.array([1.0, np.inf]))
    tl.guard(lambda x: x, nonfinite=told.append)(float("nan"))
    assert [finding["sink"]["numel"] for finding in told] == [8, 2, 1]


def test_an_exception_of_the_model_passes(answers: Answers) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        tl.guard(Scorer())(torch.ones(2, 3))


def test_a_guard_records_into_the_session_that_is_open(tmp_path: Path) -> None:
    path = tmp_path / "mine.tltrace"
    with tl.trace(path, quiet=True) as session:
        tl.guard(Scorer())(BAD)
        session.step()
        tl.guard(Scorer())(BAD)
    trace = Recorded(path)
    assert trace.numbers()[0] == 0 and trace.errors[0]["step"] == 0
    assert not list(tmp_path.glob("guard*"))


def test_a_session_of_the_program_takes_the_guards_place(tmp_path: Path) -> None:
    guarded = tl.guard(Scorer(), path=tmp_path / "guard.tltrace")
    guarded(GOOD)
    with tl.trace(tmp_path / "mine.tltrace", quiet=True):
        guarded(BAD)
    guarded(BAD)
    assert len(Recorded(tmp_path / "mine.tltrace").errors) == 1
    assert (tmp_path / "guard-2.tltrace").exists()


def test_a_directory_that_cannot_be_written_leaves_the_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[dict[str, Any]] = []
    guarded = tl.guard(Scorer(), path=tmp_path / "file" / "guard.tltrace", nonfinite=told.append)
    with pytest.warns(RuntimeWarning, match="cannot name causes"):
        guarded(BAD)
    guarded(GOOD)
    assert len(told) == 1 and "Scorer.score is not finite" in told[0]["message"]


def test_switched_off_it_is_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACELENS", "0")
    module = Scorer()
    assert tl.guard(module) is module


@pytest.mark.parametrize("settings", [{"nonfinite": "shout"}, {"name": ""}])
def test_wrong_arguments_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"tl\.guard"):
        tl.guard(print, **settings)
    with pytest.raises(ConfigError, match="cannot be called"):
        tl.guard(3)


def test_a_request_s_name_cannot_break_a_log(answers: Answers) -> None:
    with tl.serving.request("a\nb\x1b[31m" + "x" * 500):
        name = tl.serving.current_request()
    assert "\n" not in name and "\x1b" not in name and len(name) == 200
    assert tl.serving.current_request() == ""
