"""Traces and sessions in a notebook, in a real IPython and a real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tracelens as tl
from plots_traces import training

pytest.importorskip("IPython")
torch = pytest.importorskip("torch")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    # Its history would be written when the tests end, into a folder that is gone by then.
    made = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    made.reset()
    made.run_cell("import torch, tracelens as tl\n%load_ext tracelens")
    yield made
    InteractiveShell.clear_instance()


def test_a_traced_cell_gives_its_trace_and_leaves_its_names(shell: Any) -> None:
    done = shell.run_cell(
        "%%trace run --capture ops\n"
        "x = torch.tensor([1.0, 2.0], requires_grad=True)\n"
        "loss = torch.log(x - 1).sum()\n"
        "loss.backward()\n"
        "tl.step(loss=loss)"
    )

    assert done.success
    assert done.result.reader.path.name == "run.tltrace"
    assert [op.name for op in done.result.ops if op.name == "aten::log"]
    shown = done.result._repr_html_()
    assert "✖ non-finite" in shown
    # The line of the cell, as the user wrote it.
    assert "loss = torch.log(x - 1).sum()" in shown
    assert shell.user_ns["loss"].item() == float("-inf")
    done.result.close()


def test_what_a_traced_cell_raises_is_raised(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    done = shell.run_cell("%%trace run\nbefore = 3\nraise KeyError('mine')")

    assert isinstance(done.error_in_exec, KeyError)
    assert shell.user_ns["before"] == 3
    assert capsys.readouterr().out.count("Traceback") == 1
    with tl.load("run.tltrace") as trace:
        assert "KeyError" in trace.reader.notes()[-1]["message"]


def test_a_traced_cell_can_stop_at_the_op(shell: Any) -> None:
    done = shell.run_cell(
        "%%trace run --nonfinite raise\ntl.check(torch.log(torch.tensor([-1.0])), 'y')\nafter = 1"
    )

    assert isinstance(done.error_in_exec, tl.NonFiniteError)
    assert "after" not in shell.user_ns


@pytest.mark.parametrize(
    ("line", "told"),
    [("--capture all", "invalid choice: 'all'"), ("'run", "No closing quotation")],
)
def test_wrong_words_are_one_line_and_run_nothing(
    shell: Any, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    done = shell.run_cell(f"%%trace {line}\nran = 1")

    assert not done.success
    assert "ran" not in shell.user_ns
    assert told in capsys.readouterr().err


def test_a_taken_name_is_refused_unless_forced(
    shell: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.run_cell("%%trace run\n1").success
    assert not shell.run_cell("%%trace run\n2").success
    assert "--force replaces a trace" in capsys.readouterr().err
    assert shell.run_cell("%%trace run --force\n3").success


def test_with_tracing_switched_off_a_cell_only_runs(
    shell: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRACELENS", "0")

    done = shell.run_cell("%%trace run\nran = 1")

    assert (done.success, done.result) == (True, None)
    assert shell.user_ns["ran"] == 1
    assert not (tmp_path / "run.tltrace").exists()


def test_a_trace_and_a_session_are_shown_in_short(tmp_path: Path) -> None:
    path = training(tmp_path / "run.tltrace", bad_step=2, steps=4)
    with tl.load(path) as trace:
        shown = trace._repr_html_()
    assert "Gradient flow" in shown
    assert "<script" not in shown
    with tl.trace(tmp_path / "live.tltrace", quiet=True) as session:
        assert "open" in session._repr_html_()
        assert "capture=guard" in session._repr_html_()
    assert "closed" in session._repr_html_()


def test_a_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    cells = [
        "import torch\n%load_ext tracelens",
        "%%trace run\nx = torch.zeros(2, requires_grad=True)\n"
        "loss = torch.sqrt(x).sum()\nloss.backward()\nx.grad.sum().item()",
        "%%trace awaits\nimport asyncio\nawait asyncio.sleep(0)  # refused",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])

    nbclient.NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}, allow_errors=True
    ).execute()

    outputs = notebook.cells[1].outputs
    shown = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    assert 'class="tl"' in shown
    assert "torch.sqrt(x).sum()" in shown
    (refused,) = notebook.cells[2].outputs
    assert "a cell that awaits cannot be traced" in refused["text"]
    assert not (tmp_path / "awaits.tltrace").exists()
