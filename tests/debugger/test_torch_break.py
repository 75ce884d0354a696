"""``nonfinite="break"`` and ``tl.breakpoint()`` in PyTorch programs: where the prompt stands."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from conversation import Conversation

from tracelens.storage.reader import open_trace

pytestmark = pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch here")

FORWARD = """
import torch
import tracelens as tl

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x):
        h = self.fc(x)
        return torch.log(h - 1e6).sum()

def train(session):
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for number in range(3):
        batch = torch.ones(2, 4)
        loss = net(batch)
        loss.backward()
        optimizer.step()
        session.step()
        print("finished", number)

with tl.trace("run.tltrace", nonfinite="break", capture="ops", quiet=True) as session:
    train(session)
"""

BACKWARD = FORWARD.replace(
    "return torch.log(h - 1e6).sum()", "return torch.sqrt((h * 0).abs()).sum()"
)

POINT = """
import torch
import tracelens as tl

def compute(x):
    y = torch.exp(x)
    tl.breakpoint()
    z = y * 2
    return z

with tl.trace("run.tltrace", capture="ops", quiet=True):
    print("sum", float(compute(torch.zeros(3)).sum()))
"""


def program(directory: Path, source: str, **environment: str) -> Conversation:
    (directory / "train.py").write_text(source)
    return Conversation(["train.py"], directory, **environment)


def test_the_prompt_stands_at_the_users_line_with_the_first_cause_at_hand(tmp_path: Path) -> None:
    talk = program(tmp_path, FORWARD)
    said = talk.reach_prompt()
    assert "train.py:12 in Net.forward" in said
    assert "log is nan below 0" in said
    assert "train.py(21)train()" in said
    assert "-> loss.backward()" in said
    assert "tensor(nan" in talk.ask("p loss")
    assert "op        aten::log" in talk.ask("oi")
    assert "8 nan of 8" in talk.ask("pt")
    assert "aten::sub" in talk.ask("li")
    assert "aten::linear" in talk.ask("lt")
    assert "train.py:12" in talk.ask("why")
    assert "->    12" in talk.ask("ps")
    assert "aten::sum" in talk.ask("so")
    assert "aten::log" in talk.ask("rso")
    assert "float32[2, 4]" in talk.ask("pt batch"), "an expression of the paused program"
    assert "1  break  aten::addmm" in talk.ask("bo aten::addmm")
    assert "breakpoint 1" in talk.ask("rco")
    assert "Go to the next op" in talk.ask("help so")
    # Stepping goes on in the program's own lines, and enters no framework.
    assert "-> optimizer.step()" in talk.ask("n")
    assert "-> session.step()" in talk.ask("s")
    said, status = talk.leave("c")
    assert "finished 2" in said
    assert status == 0


def test_a_bad_gradient_stops_before_the_optimizer_applies_it_and_quit_ends_the_training(
    tmp_path: Path,
) -> None:
    talk = program(tmp_path, BACKWARD)
    said = talk.reach_prompt()
    assert "the gradient of fc." in said
    assert "-> optimizer.step()" in said
    assert "tensor(True)" in talk.ask("p net.fc.weight.isfinite().all()")
    assert "tensor(False)" in talk.ask("p net.fc.weight.grad.isfinite().all()")
    assert "backward" in talk.ask("oi")
    said, status = talk.leave("q")
    assert "quit from the debugger" in said
    assert "Traceback" not in said
    assert "finished" not in said
    assert status == 1
    with open_trace(tmp_path / "run.tltrace") as reader:
        assert reader.shards()[0].state == "closed"
        assert len(reader.findings()) == 1


@pytest.mark.parametrize("without", ["nothing", "the hijack", "pdbpp"])
def test_a_breakpoint_stops_at_its_line_with_any_debugger(tmp_path: Path, without: str) -> None:
    environment = {"PDBPP_HIJACK_PDB": "0"} if without != "nothing" else {}
    if without == "pdbpp":
        (tmp_path / "pdbpp.py").write_text("raise ImportError('it is not here')\n")
    talk = program(tmp_path, POINT, **environment)
    said = talk.reach_prompt()
    assert "train.py(7)compute()" in said
    assert "-> tl.breakpoint()" in said
    assert talk.process.after == ("(Pdb) " if without == "pdbpp" else "(Pdb++) ")
    # What is tried at the prompt is no op and no finding of the program.
    assert "nan" in talk.ask("p float(torch.log(y.sum() - 100.0))")
    told = talk.ask("lt")
    assert "aten::exp" in told
    assert "aten::log" not in told
    assert "1 .. 1" in talk.ask("pt")
    assert "z = y * 2" in talk.ask("n")
    assert "return z" in talk.ask("n")
    assert "tensor([2., 2., 2.])" in talk.ask("p z")
    assert "aten::mul" in talk.ask("lt"), "what ran since is looked at again"
    said, status = talk.leave("c")
    assert "sum 6.0" in said
    assert status == 0
    with open_trace(tmp_path / "run.tltrace") as reader:
        names = [op.name for op in reader.iter_ops()]
        assert "aten::mul" in names
        assert "aten::log" not in names
        assert reader.sinks() == []


def test_commands_without_a_recording_say_so(tmp_path: Path) -> None:
    talk = program(tmp_path, "import tracelens as tl\ntl.breakpoint()\nprint('on')\n")
    talk.reach_prompt()
    assert "this process recorded nothing" in talk.ask("lt")
    said, _ = talk.leave("c")
    assert "on" in said


def test_a_switched_off_tracelens_does_not_stop(tmp_path: Path) -> None:
    source = "import tracelens as tl\ntl.breakpoint()\nprint('on')\n"
    said, status = program(tmp_path, source, TRACELENS="0").leave()
    assert said.split() == ["on"]
    assert status == 0


def test_under_tracelens_run_it_stops_too_and_quits_with_one_line(tmp_path: Path) -> None:
    with_trace = 'with tl.trace("run.tltrace", nonfinite="break", capture="ops", quiet=True)'
    source = FORWARD.replace(with_trace, "with open(__file__)").replace("session.step()", "pass")
    (tmp_path / "train.py").write_text(source)
    options = ["--nonfinite", "break", "-o", "run.tltrace"]
    talk = Conversation(["-m", "tracelens", "run", *options, "train.py"], tmp_path)
    assert "train.py(21)train()" in talk.reach_prompt()
    assert "train.py:12" in talk.ask("why")
    said, status = talk.leave("q")
    assert "Traceback" not in said
    assert "quit from the debugger" in said
    assert status == 1
