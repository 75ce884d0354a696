"""A session with a small framework's plugin: steps, findings, failures, forks."""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tracelens as tl
from tracelens import api, discovery
from tracelens.diagnosis import diagnose
from tracelens.session import current
from tracelens.storage.reader import open_trace
from tracelens.tracepaths import default_path

TOY = Path(__file__).parents[1] / "toy"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The toy framework, imported, with its plugin installed."""
    monkeypatch.syspath_prepend(str(TOY))
    discovery.entry_points.cache_clear()
    framework = importlib.import_module("toyframework")
    plugin = importlib.import_module("tracelens_toyframework")
    plugin.calls.clear()
    plugin.fail_in.clear()
    yield framework
    framework.observers.clear()
    discovery.entry_points.cache_clear()
    for name in ("toyframework", "tracelens_toyframework"):
        sys.modules.pop(name, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.tltrace"


def plugin() -> Any:
    return sys.modules["tracelens_toyframework"]


def toy_backend() -> Any:
    session = current()
    assert session is not None
    return next(b for b in session.backends if b.name == "toyframework")


def steps_of(path: Path) -> list[dict[str, Any]]:
    with open_trace(path) as reader:
        rows = reader.sql("SELECT step, scalars, n_ops, hits FROM steps ORDER BY step")
    return [dict(zip(("step", "scalars", "n_ops", "hits"), row, strict=True)) for row in rows]


def step_numbers(path: Path) -> list[int]:
    return [row["step"] for row in steps_of(path)]


def messages(path: Path, kind: str) -> list[str]:
    with open_trace(path) as reader:
        return [note["message"] for note in reader.events("note") if note["kind"] == kind]


def bad_loss(toy: ModuleType) -> Any:
    return toy.mul(toy.log(toy.Value(0.0)), toy.Value(2.0))


# Steps


def test_explicit_steps_are_numbered_and_carry_their_scalars(path: Path) -> None:
    with tl.trace(path) as session:
        for number in range(3):
            session.step(loss=number / 2, lr=0.1)
    rows = steps_of(path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["scalars"] == '{"loss":0.5,"lr":0.1}'


def test_a_block_without_steps_is_one_step(path: Path, toy: ModuleType) -> None:
    with tl.trace(path):
        toy.log(toy.Value(1.0))
    assert [(row["step"], row["n_ops"]) for row in steps_of(path)] == [(0, 1)]


def test_the_ops_after_the_last_marked_step_are_a_step_too(path: Path, toy: ModuleType) -> None:
    with tl.trace(path) as session:
        session.step()
        toy.log(toy.Value(1.0))
    assert step_numbers(path) == [0, 1]


def test_a_decorated_call_is_a_step(path: Path) -> None:
    @tl.trace
    def train_step() -> None: ...

    with tl.trace(path):
        for _ in range(3):
            train_step()
    assert step_numbers(path) == [0, 1, 2]


def test_step_after_a_decorated_call_names_the_same_step(path: Path) -> None:
    @tl.trace
    def train_step(x: float) -> float:
        return x

    with tl.trace(path) as session:
        for number in range(3):
            session.step(loss=train_step(float(number)))
    rows = steps_of(path)
    assert [row["scalars"] for row in rows] == ['{"loss":0.0}', '{"loss":1.0}', '{"loss":2.0}']


def test_optimizer_steps_count_only_until_the_user_marks_one(path: Path) -> None:
    with tl.trace(path) as session:
        session.auto_step()
        session.auto_step()
        session.step(loss=1.0)  # names the step that the optimizer's step just ended
        session.auto_step()
        session.step(loss=2.0)
    rows = steps_of(path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert [row["scalars"] for row in rows] == ["{}", '{"loss":1.0}', '{"loss":2.0}']


def test_optimizer_steps_inside_a_decorated_call_count_nothing(path: Path) -> None:
    @tl.trace
    def train_step() -> None:
        session = current()
        assert session is not None
        session.auto_step()
        session.auto_step()

    with tl.trace(path):
        train_step()
        train_step()
    assert step_numbers(path) == [0, 1]


def test_nested_decorated_calls_are_one_step(path: Path) -> None:
    @tl.trace
    def inner() -> None: ...

    @tl.trace
    def outer() -> None:
        inner()
        inner()

    with tl.trace(path):
        outer()
        outer()
    assert step_numbers(path) == [0, 1]


def test_a_schedule_tells_backends_which_steps_to_record(path: Path, toy: ModuleType) -> None:
    with tl.trace(path, schedule=tl.schedule(wait=1, active=1)) as session:
        for _ in range(3):
            session.step()
    begun = [call for call in plugin().calls if call.startswith("begin_step")]
    assert begun[:3] == ["begin_step 0 inactive", "begin_step 1", "begin_step 2 inactive"]


def test_scalars_that_are_no_numbers_are_left_out(path: Path) -> None:
    with tl.trace(path) as session:
        session.step(loss="high", lr=None, accuracy=1)
    assert steps_of(path)[0]["scalars"] == '{"accuracy":1.0}'


# Decorated functions keep their nature


def test_a_decorated_function_keeps_its_name_signature_and_result() -> None:
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    decorated = tl.trace(add)
    assert decorated.__name__ == "add" and decorated.__doc__ == "Add."
    assert decorated.__wrapped__ is add  # type: ignore[attr-defined]


def test_switched_off_the_decorator_returns_the_function_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRACELENS", "0")

    def f() -> None: ...

    assert tl.trace(f) is f
    assert tl.trace(capture="ops")(f) is f


def test_switched_off_a_block_records_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACELENS", "0")
    with tl.trace(path) as session:
        session.step(loss=1.0)
        tl.step()
        assert tl.check(float("nan")) != 0
        assert session.findings == ()
    assert not path.exists()


def test_methods_can_be_decorated(path: Path) -> None:
    class Trainer:
        @tl.trace
        def step(self, x: int) -> int:
            return x + 1

        @staticmethod
        @tl.trace
        def static(x: int) -> int:
            return x

    with tl.trace(path):
        assert Trainer().step(1) == 2
        assert Trainer.static(3) == 3
    assert step_numbers(path) == [0, 1]


def test_a_decorator_over_staticmethod_says_where_to_put_it() -> None:
    with pytest.raises(tl.ConfigError, match="below @staticmethod"):
        tl.trace(staticmethod(len))  # type: ignore[call-overload]


def test_a_coroutine_stays_a_coroutine(path: Path) -> None:
    @tl.trace
    async def train_step(x: int) -> int:
        await asyncio.sleep(0)
        return x

    async def main() -> list[int]:
        return [await train_step(1), await train_step(2)]

    assert asyncio.iscoroutinefunction(train_step)
    with tl.trace(path):
        assert asyncio.run(main()) == [1, 2]
    assert step_numbers(path) == [0, 1]


def test_a_generator_is_one_step_and_takes_what_is_sent(path: Path) -> None:
    @tl.trace
    def echo() -> Any:
        received = yield 1
        yield received

    with tl.trace(path):
        generator = echo()
        assert next(generator) == 1
        assert generator.send("x") == "x"
        assert list(generator) == []
    assert step_numbers(path) == [0]


def test_an_asynchronous_generator_takes_what_is_sent_and_thrown(path: Path) -> None:
    closed = []

    @tl.trace
    async def echo() -> Any:
        try:
            received = yield 1
            try:
                yield received
            except KeyError:
                yield "caught"
        finally:
            closed.append(True)

    async def main() -> list[Any]:
        generator = echo()
        out = [await anext(generator), await generator.asend("x")]
        out.append(await generator.athrow(KeyError()))
        await generator.aclose()
        return out

    with tl.trace(path):
        assert asyncio.run(main()) == [1, "x", "caught"]
    assert closed == [True]


def test_an_exception_passes_unchanged_and_is_noted(path: Path) -> None:
    error = KeyError("k")

    @tl.trace
    def train_step() -> None:
        raise error

    with pytest.raises(KeyError) as caught, tl.trace(path):
        train_step()
    assert caught.value is error
    assert messages(path, "exception") == ["KeyError: 'k'"]


# Findings


def test_a_sink_is_explained_by_its_first_cause(path: Path, toy: ModuleType) -> None:
    with tl.trace(path, quiet=True) as session:
        toy_backend().sink("loss", "loss", bad_loss(toy))
        session.step()
        (finding,) = session.findings
    first = finding["first_cause"]
    assert (first["op"], first["phase"], first["step"]) == ("toy::log", "forward", 0)
    assert first["source"]["function"] == "bad_loss"
    with open_trace(path) as reader:
        assert [f["first_cause"]["op"] for f in reader.findings()] == ["toy::log"]


def test_the_same_failure_is_reported_once_and_counted(path: Path, toy: ModuleType) -> None:
    with tl.trace(path, quiet=True) as session:
        for _ in range(5):
            toy_backend().sink("loss", "loss", bad_loss(toy))
            session.step()
        assert [finding["count"] for finding in session.findings] == [5]
    with open_trace(path) as reader:
        assert len(reader.findings()) == 1
        assert len(reader.sinks()) == 5


def test_raise_stops_at_the_end_of_the_step(path: Path, toy: ModuleType) -> None:
    with (
        pytest.raises(tl.NonFiniteError, match="log") as caught,
        tl.trace(path, nonfinite="raise") as session,
    ):
        toy_backend().sink("loss", "loss", bad_loss(toy))
        session.step()
    assert caught.value.report["first_cause"]["op"] == "toy::log"
    assert isinstance(caught.value, FloatingPointError)
    assert messages(path, "exception") == []


def test_raise_works_from_a_decorated_call_and_at_the_end_of_a_block(
    tmp_path: Path, toy: ModuleType
) -> None:
    @tl.trace
    def train_step() -> None:
        toy_backend().sink("loss", "loss", bad_loss(toy))

    with pytest.raises(tl.NonFiniteError), tl.trace(tmp_path / "a", nonfinite="raise"):
        train_step()
    with pytest.raises(tl.NonFiniteError), tl.trace(tmp_path / "b", nonfinite="raise"):
        toy_backend().sink("loss", "loss", bad_loss(toy))


def test_an_exception_of_the_program_is_not_replaced_by_ours(path: Path, toy: ModuleType) -> None:
    with pytest.raises(ZeroDivisionError), tl.trace(path, nonfinite="raise"):
        toy_backend().sink("loss", "loss", bad_loss(toy))
        raise ZeroDivisionError
    with open_trace(path) as reader:
        assert len(reader.findings()) == 1


def test_warn_warns_once_at_the_users_line(path: Path, toy: ModuleType) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with tl.trace(path, nonfinite="warn", quiet=True) as session:
            for _ in range(3):
                toy_backend().sink("loss", "loss", bad_loss(toy))
                session.step()
    (warning,) = caught
    assert warning.category is tl.NonFiniteWarning
    assert warning.filename == __file__
    assert "log" in str(warning.message)


def test_record_says_on_stderr_how_to_see_it(
    path: Path, toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with tl.trace(path):
        toy_backend().sink("loss", "loss", bad_loss(toy))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(f"tracelens why {path}")


def test_a_clean_session_says_nothing(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tl.trace(path) as session:
        session.step(loss=1.0)
    assert capsys.readouterr() == ("", "")


def test_check_raises_with_the_first_cause_whatever_the_mode(path: Path, toy: ModuleType) -> None:
    with pytest.raises(tl.NonFiniteError) as caught, tl.trace(path, nonfinite="record"):
        tl.check(bad_loss(toy), "loss")
    assert caught.value.report["first_cause"]["op"] == "toy::log"


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_check_works_without_a_session(bad: float) -> None:
    numpy = pytest.importorskip("numpy")
    assert tl.check(numpy.ones(3), "x").sum() == 3
    with pytest.raises(tl.NonFiniteError, match="x is not finite"):
        tl.check(bad, "x")
    with pytest.raises(tl.NonFiniteError, match="x is not finite"):
        tl.check(numpy.array([1.0, bad]), "x")


def test_tap_and_watch_return_what_they_are_given(path: Path, toy: ModuleType) -> None:
    value, model = toy.Value(1.0), object()
    assert tl.tap(value, "a") is value
    with tl.trace(path):
        assert tl.tap(value, "a") is value
        assert tl.watch(model) is model
        assert tl.check(value, "b") is value
    assert {"tap a", "watch", "check b"} <= set(plugin().calls)


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_that_is_no_name_is_refused(path: Path, name: object) -> None:
    with tl.trace(path), pytest.raises(tl.ConfigError, match="name must be a non-empty string"):
        tl.tap(1.0, name)  # type: ignore[arg-type]


# Backends


def test_a_backend_starts_when_its_framework_is_imported_later(path: Path, toy: ModuleType) -> None:
    del sys.modules["toyframework"], sys.modules["tracelens_toyframework"]
    finders = list(sys.meta_path)
    with tl.trace(path) as session:
        assert "toyframework" not in [backend.name for backend in session.backends]
        framework = importlib.import_module("toyframework")
        assert "toyframework" in [backend.name for backend in session.backends]
        assert plugin().calls == ["start", "begin_step 0"]
        framework.log(framework.Value(1.0))
        assert "exec_module" not in vars(framework.__spec__.loader)
    assert steps_of(path)[0]["n_ops"] == 1
    assert sys.meta_path == finders


def test_the_time_of_an_import_is_no_part_of_the_first_step(path: Path, toy: ModuleType) -> None:
    del sys.modules["toyframework"], sys.modules["tracelens_toyframework"]
    with tl.trace(path) as session:
        before_ns = session.writer.now_ns()
        framework = importlib.import_module("toyframework")
        framework.log(framework.Value(1.0))
    with open_trace(path) as reader:
        (step,) = reader.steps()
    assert step["start_ns"] > before_ns
    assert step["n_ops"] == 1


def test_a_backend_is_not_started_if_its_framework_is_never_imported(
    path: Path, toy: ModuleType
) -> None:
    del sys.modules["toyframework"], sys.modules["tracelens_toyframework"]
    with tl.trace(path):
        assert importlib.util.find_spec("toyframework") is not None
    assert "tracelens_toyframework" not in sys.modules


@pytest.mark.parametrize("method", ["start", "begin_step", "end_step", "wrap_step", "stop", "tap"])
def test_a_failing_backend_never_stops_the_program_and_is_noted_once(
    method: str, path: Path, toy: ModuleType
) -> None:
    plugin().fail_in.add(method)

    @tl.trace
    def train_step(x: float) -> float:
        return tl.tap(x, "x")

    with tl.trace(path):
        assert [train_step(float(n)) for n in range(3)] == [0.0, 1.0, 2.0]
    assert step_numbers(path) == [0, 1, 2]
    noted = messages(path, "hook_failed")
    if method != "stop":
        assert len(noted) == 1
    assert all(f"{method} is broken" in message for message in noted)


def test_backends_are_stopped_when_the_session_ends(path: Path, toy: ModuleType) -> None:
    with pytest.raises(KeyError), tl.trace(path):
        raise KeyError
    assert plugin().calls[-1] == "stop"
    assert toy.observers == []


# Several sessions, and where traces go


def test_sessions_do_not_nest(tmp_path: Path) -> None:
    with tl.trace(tmp_path / "a"):
        with pytest.raises(tl.SessionError, match=r"already records to .*a; .*do not nest"):
            tl.trace(tmp_path / "b").__enter__()
        assert current() is not None
    assert not (tmp_path / "b").exists()


def test_one_session_after_another_is_fine(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with tl.trace(tmp_path / name) as session:
            session.step()
    assert step_numbers(tmp_path / "a") == step_numbers(tmp_path / "b") == [0]


def test_a_session_cannot_be_used_twice(path: Path) -> None:
    tracer = tl.trace(path)
    with tracer:
        pass
    with pytest.raises(tl.SessionError, match="used before"):
        tracer.__enter__()


def test_an_existing_path_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(tl.SessionError, match="already exists; choose another path"):
        tl.trace(path).__enter__()
    assert current() is None


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(tl.SessionError, match=r"cannot write a trace to .*; choose another"):
        tl.trace(file / "t.tltrace").__enter__()
    assert current() is None


def test_default_paths_go_to_the_directory_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACELENS_DIR", str(tmp_path))
    first = default_path("train")
    first.mkdir()
    assert first.parent == tmp_path
    assert first.name.startswith("train-") and first.suffix == ".tltrace"
    assert default_path("train") != first


def run_script(
    folder: Path, source: str, typed: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    script = folder / "program.py"
    script.write_text(source)
    return subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(TOY), "TRACELENS_DIR": str(folder), **settings},
        input=typed,
        capture_output=True,
        text=True,
        timeout=300,
    )


BARE = """
import toyframework as toy, tracelens as tl
from tracelens.session import current

@tl.trace
def train_step(x):
    loss = toy.log(toy.Value(x))
    if x == 0:
        current().backends[0].sink("loss", "loss", loss)
    return loss

@tl.trace
def evaluate():
    return 1

assert current() is None
for x in LIST:
    train_step(x)
evaluate()
"""


def test_bare_decorators_share_one_session_closed_at_exit(tmp_path: Path) -> None:
    done = run_script(tmp_path, BARE.replace("LIST", "[2.0, 1.0]"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (trace,) = tmp_path.glob("program-*.tltrace")
    assert step_numbers(trace) == [0, 1, 2]
    with open_trace(trace) as reader:
        assert reader.health().shards[0].state == "closed"


def test_a_bare_decorator_tells_of_a_finding_at_exit_in_two_lines(tmp_path: Path) -> None:
    done = run_script(tmp_path, BARE.replace("LIST", "[1.0, 0.0]"))
    assert done.returncode == 0
    (trace,) = tmp_path.glob("program-*.tltrace")
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert "program.py:7" in lines[0]
    assert lines[1].endswith(f"tracelens why {trace}")


def test_the_environment_can_make_a_bare_decorator_raise(tmp_path: Path) -> None:
    done = run_script(tmp_path, BARE.replace("LIST", "[0.0]"), TRACELENS_NONFINITE="raise")
    assert done.returncode == 1
    assert "tracelens.errors.NonFiniteError" in done.stderr


@pytest.mark.parametrize(("answer", "code"), [("continue", 0), ("quit", 1)])
def test_break_opens_a_prompt_at_the_users_line(tmp_path: Path, answer: str, code: int) -> None:
    source = BARE.replace("LIST", "[0.0]") + "print('went on')\n"
    done = run_script(tmp_path, source, f"p x\nwhere\n{answer}\n", TRACELENS_NONFINITE="break")
    assert done.returncode == code
    assert re.search(r"\(Pdb(\+\+)?\) 0\.0", done.stdout)
    assert "-> train_step(x)" in done.stdout
    assert "log" in done.stderr
    assert ("went on" in done.stdout) == (code == 0)


def test_a_bare_decorator_that_cannot_record_warns_once_and_stays_out_of_the_way(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    done = run_script(
        tmp_path,
        "import tracelens as tl\n@tl.trace\ndef f(x):\n    return x\nprint(f(1), f(2))\n",
        TRACELENS_DIR=str(tmp_path / "file"),
    )
    assert (done.returncode, done.stdout) == (0, "1 2\n")
    assert done.stderr.count("tracelens records nothing") == 1


def test_a_wrong_variable_stops_a_bare_decorator_with_one_line(tmp_path: Path) -> None:
    done = run_script(tmp_path, BARE.replace("LIST", "[1.0]"), TRACELENS_CAPTURE="everything")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "environment variable TRACELENS_CAPTURE='everything' is not one of guard, ops, tensors"
    )


def test_ranks_of_one_run_write_one_trace(tmp_path: Path) -> None:
    source = (
        "import toyframework as t, tracelens as tl, sys\n"
        f"with tl.trace({str(tmp_path / 't.tltrace')!r}, capture='ops', quiet=True) as s:\n"
        "    if s.rank == 1:\n"
        "        s.backends[0].sink('loss', 'loss', t.log(t.Value(0.0)))\n"
        "    s.step(loss=float(s.rank))\n"
    )
    for rank in ("0", "1"):
        done = run_script(tmp_path, source, RANK=rank, WORLD_SIZE="2")
        assert (done.returncode, done.stderr) == (0, "")
    with open_trace(tmp_path / "t.tltrace") as reader:
        assert reader.ranks() == [0, 1]
        assert reader.sql("SELECT rank, loss FROM steps ORDER BY rank") == [(0, 0.0), (1, 1.0)]
        told = diagnose(reader)
    assert (told["verdict"], told["first_cause"]["rank"]) == ("non-finite", 1)
    assert told["trace"]["shards"] == 2


# Forks


def _session_in_child(queue: Any) -> None:
    tl.step(loss=1.0)
    queue.put(current() is None)


def test_a_forked_child_leaves_the_parents_trace_alone(path: Path, toy: ModuleType) -> None:
    context = multiprocessing.get_context("fork")
    with tl.trace(path) as session:
        queue = context.Queue()
        child = context.Process(target=_session_in_child, args=(queue,))
        child.start()
        assert queue.get(timeout=300)
        child.join()
        session.step()
        assert toy.observers
    assert child.exitcode == 0
    assert step_numbers(path) == [0]


def test_the_shared_session_is_forgotten_between_tests() -> None:
    assert api._implicit is None
