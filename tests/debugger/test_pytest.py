"""Under pytest: the prompt lands on the user's line, and the terminal is the prompt's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from conversation import Conversation

pytestmark = pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch here")

TESTS = """
import torch
import tracelens as tl

def loss_of(x):
    return torch.log(x - 5).sum()

def test_raises():
    with tl.trace("raise.tltrace", nonfinite="raise", capture="ops", quiet=True):
        weight = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([weight], 0.1)
        loss_of(weight).backward()
        optimizer.step()

def test_breaks():
    with tl.trace("break.tltrace", nonfinite="break", capture="ops", quiet=True):
        weight = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([weight], 0.1)
        loss_of(weight).backward()
        optimizer.step()
    print("went on")
"""


def run_pytest(directory: Path, *arguments: str) -> Conversation:
    (directory / "test_user.py").write_text(TESTS)
    return Conversation(["-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments], directory)


def test_post_mortem_lands_on_the_users_line_with_the_tensor_commands(tmp_path: Path) -> None:
    talk = run_pytest(
        tmp_path, "--pdb", "--pdbcls=tracelens.debugger:Debugger", "test_user.py::test_raises"
    )
    said = talk.reach_prompt()
    assert "test_raises()" in said
    assert "requires_grad=True" in talk.ask("p weight")
    assert "aten::log" in talk.ask("lt")
    assert "test_user.py:6" in talk.ask("why")
    _, status = talk.leave("q")
    assert status == 2


def test_a_break_takes_the_terminal_from_the_capture_and_gives_it_back(tmp_path: Path) -> None:
    talk = run_pytest(tmp_path, "test_user.py::test_breaks")
    said = talk.reach_prompt()
    assert "log is nan below 0" in said
    assert "test_breaks()" in said
    assert "aten::log" in talk.ask("lt")
    said, status = talk.leave("c")
    assert "went on" not in said, "a passing test's output is captured again"
    assert "1 passed" in said
    assert status == 0


WATCHED = """
import torch

def loss_of(x):
    return torch.log(x - 5).sum()

def test_sink():
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.1)
    loss_of(weight).backward()
    optimizer.step()

def test_left():
    logits = torch.ones(2)
    loss_of(logits)
"""


def test_with_pdb_a_watched_test_stops_at_the_users_line_and_says_what_was_found(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_user.py").write_text(WATCHED)
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--nan=fail", "--pdb"]
    talk = Conversation([*arguments, "test_user.py"], tmp_path)
    said = talk.reach_prompt()
    assert "tracelens: aten::log produced 3 NaN (of 3) at test_user.py:5" in said
    assert "test_sink()" in said
    assert "requires_grad=True" in talk.ask("p weight")
    assert "test_user.py:5" in talk.ask("why")
    # The second test used the value nowhere: the prompt stands at the line that made it.
    said = talk.ask("c")
    assert "tracelens: aten::log produced 2 NaN (of 2) at test_user.py:5" in said
    assert "return torch.log(x - 5).sum()" in said
    said, _ = talk.leave("q")
    assert "2 failed" in said
