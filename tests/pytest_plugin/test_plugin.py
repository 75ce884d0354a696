"""A test that computes a NaN fails with one sentence; everything else stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from inner import ALWAYS, Directory, Server, in_subprocess

torch = pytest.importorskip("torch")

MODEL = """import torch
from torch import nn

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return torch.log(x - 5).relu()

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential()
        self.encoder.head = Head()

    def forward(self, x):
        return self.encoder.head(x)
"""

TESTS = """import unittest
import pytest, torch
from model import Model

def bad():
    return torch.log(torch.tensor([-1.0]))

def test_forward():
    assert Model()(torch.arange(8.0)).shape == (8,)

def test_backward():
    x = torch.zeros(3, requires_grad=True)
    x.sqrt().sum().backward()

def test_optimizer():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        (weight * (float("nan") if step == 1 else 1.0)).sum().backward()
        optimizer.step()

def test_finite():
    torch.ones(3).exp().sum().item()

def test_masked():
    scores = torch.randn(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
    assert scores.softmax(-1).sum() > 0

def test_asked():
    assert torch.isnan(bad()).all()

def test_silent_comparison():
    assert not torch.allclose(bad(), torch.ones(1))

def test_printed():
    print(bad())

def test_own_failure():
    bad()
    raise ValueError("my own")

@pytest.mark.allow_nan(reason="meant")
def test_allowed():
    bad()

@pytest.mark.xfail(reason="known")
def test_expected():
    bad()

@pytest.fixture(scope="module")
def trained():
    return bad()

def test_first_user(trained):
    pass

def test_second_user(trained):
    pass

@pytest.mark.parametrize("x", [1.0, -1.0])
def test_parametrized(x):
    torch.tensor([x]).log()

class TestOld(unittest.TestCase):
    def setUp(self):
        self.x = torch.tensor([-1.0])

    def test_unittest(self):
        self.x.log()

@pytest.mark.asyncio
async def test_async():
    bad()

@pytest.fixture
def broken():
    bad()
    raise KeyError("setup")

def test_broken_setup(broken):
    pass
"""

EXPECTED = {
    "test_forward": "failed", "test_backward": "failed", "test_optimizer": "failed",
    "test_finite": "passed", "test_masked": "passed", "test_asked": "passed",
    "test_silent_comparison": "failed", "test_printed": "failed", "test_own_failure": "failed",
    "test_allowed": "passed", "test_expected": "skipped", "test_first_user": "failed",
    "test_second_user": "passed", "test_parametrized[1.0]": "passed",
    "test_parametrized[-1.0]": "failed", "test_unittest": "failed", "test_async": "failed",
    "test_broken_setup": "error",
}  # fmt: skip

BAD = """import pytest, torch

def test_nan():
    torch.log(torch.tensor([-1.0]))

def test_inf():
    torch.log(torch.tensor([0.0]))

@pytest.mark.no_nan
def test_marked():
    torch.log(torch.tensor([-1.0]))

@pytest.mark.no_nan(inf=False)
def test_marked_inf():
    torch.log(torch.tensor([0.0]))

@pytest.mark.no_nan(backward=False)
def test_marked_backward():
    torch.zeros(1, requires_grad=True).sqrt().sum().backward()

@pytest.mark.no_nan(ignore="log")
def test_marked_ignore():
    torch.log(torch.tensor([-1.0]))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def watched(tmp_path: Path, server: Server) -> Directory:
    directory = Directory(tmp_path, server)
    directory.write("model.py", MODEL)
    return directory


def test_each_kind_of_test_is_judged_and_told_in_one_sentence(watched: Directory) -> None:
    run = watched.run(TESTS, "--nan=fail", "--strict-markers")
    assert run.outcomes() == EXPECTED
    assert run.status == 1
    told = run.tests["test_forward"]
    sentence = (
        "aten::log produced 5 NaN and 1 -Inf (of 8) at model.py:10 in encoder.head, test step 0"
    )
    assert told.first == sentence
    assert told.message == f"Failed: {sentence}"
    assert run.tests["test_backward"].first.endswith("at test_user.py:13 (backward), test step 0")
    assert run.tests["test_optimizer"].first.endswith("test_user.py:20, test step 1")
    assert "my own" in run.tests["test_own_failure"].message
    assert "KeyError" in run.tests["test_broken_setup"].message
    assert run.tests["test_first_user"].first.endswith("at test_user.py:6, fixture setup")
    assert run.tests["test_finite"].properties == {}
    assert "log is nan below 0" in run.text
    assert "open it: tracelens view .tracelens/test_user-test_forward.tltrace --at " in run.text
    assert "non-finite values (tracelens)" in run.text


def test_the_trace_of_a_failing_test_opens_and_tells_the_same(watched: Directory) -> None:
    run = watched.run(TESTS, "--nan=fail", "--tracelens-dir=kept", "-k", "optimizer")
    trace = run.tests["test_optimizer"].properties["tracelens.trace"]
    assert trace == "kept/test_user-test_optimizer.tltrace"
    done = subprocess.run(
        [sys.executable, "-m", "tracelens", "why", "--json", trace],
        cwd=watched.path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    first = json.loads(done.stdout)["first_cause"]
    assert (first["source"]["line"], first["step"]) == (20, 1)
    assert (watched.path / "kept" / ".gitignore").read_text() == "*\n"
    verified = subprocess.run(
        [sys.executable, "-m", "tracelens", "verify", trace], cwd=watched.path, capture_output=True
    )
    assert verified.returncode == 0, verified.stdout


@pytest.mark.slow
def test_xdist_tells_the_same(watched: Directory) -> None:
    pytest.importorskip("xdist")
    watched.write("test_user.py", TESTS)
    run = in_subprocess(watched.path, "--nan=fail", "-n2", "--dist=load")
    alone = watched.run(TESTS, "--nan=fail")
    outcomes = run.outcomes()
    # Each worker makes the module's fixture for its own first test that asks for it.
    for each in (outcomes, expected := dict(EXPECTED)):
        del each["test_second_user"], each["test_first_user"]
    assert outcomes == expected
    for name in expected:
        assert run.tests[name].properties == alone.tests[name].properties
    assert "test_user.py::test_forward: aten::log produced 5 NaN" in run.text


@pytest.mark.parametrize(
    ("arguments", "failing"),
    [
        ((), {"test_marked"}),
        (("--nan=off",), set()),
        (("--nan=record",), {"test_marked"}),
        (("--nan=fail",), {"test_nan", "test_inf", "test_marked"}),
        (("--nan=fail", "--no-nan-inf"), {"test_nan", "test_marked"}),
        (("--nan=fail", "--nan-ignore=aten::log"), set()),
        (("--nan=fail", "--nan-ignore=test_user.py:4", "--nan-ignore=nowhere.*"),
         {"test_inf", "test_marked"}),
        (("-o", "tracelens_nan=fail", "-o", "tracelens_inf=false"), {"test_nan", "test_marked"}),
        (("-o", "tracelens_nan=fail", "--nan=marked"), {"test_marked"}),
        (("-o", "tracelens_nan=fail", "-o", "tracelens_ignore=test_user.py:4 x",
          "-o", "tracelens_inf=no", "--nan-inf"), {"test_nan", "test_inf", "test_marked"}),
        (("--nan=fail", "--tracelens-backend=tensorflow"), set()),
    ],
    ids=lambda words: " ".join(sorted(words) if isinstance(words, set) else words),
)  # fmt: skip
def test_options_and_ini_say_what_fails(
    watched: Directory, arguments: tuple[str, ...], failing: set[str]
) -> None:
    run = watched.run(BAD, *arguments)
    found = {name for name, told in run.tests.items() if told.outcome == "failed"}
    assert found == failing, run.text
    assert run.status == (1 if failing else 0)


def test_recorded_findings_are_listed_and_fail_nothing(watched: Directory) -> None:
    run = watched.run("import torch\ndef test_a(): torch.tensor([-1.0]).log()", "--nan=record")
    assert run.status == 0
    assert "test_user.py::test_a: aten::log produced 1 NaN (of 1) at test_user.py:2" in run.text
    clean = watched.run("import torch\ndef test_a(): torch.ones(1).log()", "--nan=record")
    assert "tracelens" not in clean.text


def test_without_the_plugin_its_markers_are_all_that_is_missed(watched: Directory) -> None:
    source = "import torch\ndef test_a(): torch.tensor([-1.0]).log()"
    watched.write("test_user.py", source)
    run = in_subprocess(watched.path, "-p", "no:tracelens")
    assert (run.status, run.outcomes()) == (0, {"test_a": "passed"})


def test_wrong_settings_are_refused_in_one_line(watched: Directory) -> None:
    run = watched.run(BAD, "-o", "tracelens_inf=perhaps")
    assert run.status == 4
    assert "tracelens_inf: invalid truth value 'perhaps'" in run.text
    run = watched.run(BAD, "-o", "tracelens_nan=sometimes")
    assert run.status == 4
    assert "tracelens_nan = 'sometimes' is not one of off, marked, record, fail" in run.text
    wrong = """
        import pytest
        def test_fine(): pass
        @pytest.mark.no_nan(infs=1)
        def test_a(): pass
        @pytest.mark.no_nan(ignore=5)
        def test_b(): pass
    """
    run = watched.run(wrong)
    assert "no_nan takes inf=, ignore= and backward= only, not infs" in run.text
    assert "no_nan: ignore= is a pattern or a list of them, not 5" in run.text
    assert "1 passed, 2 errors" in run.text and "During handling" not in run.text


def test_hypothesis_shrinks_to_one_report(watched: Directory) -> None:
    pytest.importorskip("hypothesis")
    source = """
        import torch
        from hypothesis import given, settings, strategies

        @settings(database=None, deadline=None)
        @given(strategies.integers(-1000, 1000))
        def test_log(x):
            torch.log(torch.tensor([float(x)]) - 100)

        @settings(database=None, deadline=None, max_examples=5)
        @given(strategies.integers(1, 9))
        def test_fine(x):
            torch.log(torch.tensor([float(x)]))
    """
    run = watched.run(source, "--nan=fail")
    assert run.outcomes() == {"test_log": "failed", "test_fine": "passed"}
    told = run.tests["test_log"]
    assert told.first.endswith("at test_user.py:7, test step 0")
    assert "test_log(\n    x=0,\n)" in run.text
    assert run.text.count("open it:") == 1
    assert len(list((watched.path / ".tracelens").glob("*.tltrace"))) == 1


def test_a_test_that_records_itself_is_left_to_its_own_session(watched: Directory) -> None:
    source = """
        import pytest, torch
        import tracelens as tl

        def test_own(tmp_path):
            with tl.trace(tmp_path / "own.tltrace", nonfinite="raise", quiet=True):
                with pytest.raises(tl.NonFiniteError):
                    torch.tensor([-1.0]).log().item()

        def test_next():
            torch.tensor([-1.0]).log()

        @tl.trace
        def step(x):
            return x.log()

        def test_decorated():
            step(torch.tensor([-1.0]))
    """
    run = watched.run(source, "--nan=fail")
    assert run.outcomes() == {
        "test_own": "passed", "test_next": "failed", "test_decorated": "failed",
    }  # fmt: skip
    assert "own.tltrace" in run.tests["test_own"].properties["tracelens.not_judged"]
    assert "test_own: not judged: it records itself" in run.text


def test_the_fixtures_give_the_recording_and_check_values(watched: Directory) -> None:
    source = """
        import pytest, torch

        def test_trace(tracelens):
            torch.ones(2).exp()
            tracelens.step(loss=0.5)
            torch.ones(2).exp()
            assert tracelens.findings == []
            torch.tensor([-1.0]).log()
            (found,) = tracelens.findings
            assert found["first_cause"]["source"]["line"] == 8
            assert [step["scalars"] for step in tracelens.trace.steps] == [{"loss": 0.5}]
            assert "aten::log" in [op.name for op in tracelens.trace.ops]

        def test_containers(assert_finite):
            model = torch.nn.Linear(2, 2)
            assert assert_finite(model, "model") is model
            assert_finite({"a": [1.0, torch.ones(2)]})
            why = r"out\\['a'\\]\\[1\\] is not finite: aten::log"
            with pytest.raises(pytest.fail.Exception, match=why):
                assert_finite({"a": [1.0, torch.tensor([-1.0]).log()]}, "out")
    """
    run = watched.run(source)
    assert run.outcomes() == {"test_trace": "passed", "test_containers": "passed"}, run.text
    off = watched.run("def test_a(assert_finite): assert_finite(float('nan'))", "--nan=off")
    assert off.outcomes() == {"test_a": "failed"}


def test_a_marked_trace_holds_every_op(watched: Directory) -> None:
    source = """
        import pytest, torch

        @pytest.mark.trace
        def test_a():
            torch.ones(3).exp()
    """
    run = watched.run(source)
    import tracelens as tl

    trace = watched.path / run.tests["test_a"].properties["tracelens.trace"]
    (exp,) = [op for op in tl.load(trace).ops if op.name == "aten::exp"]
    assert exp.duration_ns is not None
    assert exp.outputs[0].stats is not None


def test_threads_and_forks_do_not_confuse_the_window(watched: Directory) -> None:
    source = """
        import os, threading, torch

        def test_thread():
            worker = threading.Thread(target=lambda: torch.tensor([-1.0]).log())
            worker.start()
            worker.join()

        def test_fork():
            child = os.fork()
            if not child:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0

        def test_after():
            torch.tensor([-1.0]).log()
    """
    run = watched.run(source, "--nan=fail")
    assert run.outcomes() == {
        "test_thread": "failed",
        "test_fork": "passed",
        "test_after": "failed",
    }


def test_unused_it_imports_nothing_but_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(
        "import sys\ndef test_a():\n"
        "    ours = [m for m in sys.modules if m.startswith(('tracelens', 'pytest_tracelens'))]\n"
        "    assert ours == ['pytest_tracelens', 'pytest_tracelens.plugin']\n"
        "    assert 'numpy' not in sys.modules\n"
    )
    plugins = ["-p", "no:hypothesispytest", "-p", "no:xdist", "-p", "no:asyncio"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *ALWAYS, *plugins],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": ""},
    )
    assert done.returncode == 0, done.stdout
