"""The C++ observer, through the public door: what a session says of real PyTorch programs."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import tracelens as tl
from tracelens.events import OpFlag, Phase
from tracelens_torch.native import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler here")


def record(path: Path, run: Callable[[Any], object], **options: Any) -> tuple[Any, Any]:
    """Run under the native engine; return the session and the trace it wrote."""
    options.setdefault("quiet", True)
    with tl.trace(path / "run.tltrace", engine="native", **options) as session:
        run(session)
    return session, tl.load(path / "run.tltrace")


def first_cause(session: Any) -> dict[str, Any]:
    return session.findings[0]["first_cause"]


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.strip().endswith(text))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(x)  # encoder line
        return self.head(hidden)  # head line


def test_a_backward_op_carries_its_forward_ops_line_and_module(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        Net()(torch.randn(3, 4)).sum().backward()

    _, trace = record(tmp_path, run, capture="ops")
    ops = list(trace.ops)
    by_id = {op.op_id: op for op in ops}
    backward = [op for op in ops if op.phase is Phase.BACKWARD and op.name == "aten::mm"]
    assert {op.module for op in backward} == {"encoder.0", "head"}
    for op in backward:
        forward = by_id[op.fwd_op_id]
        assert forward.name == "aten::addmm"
        assert (op.source, op.module) == (forward.source, forward.module)
    lines = {op.module: op.source.line for op in backward}
    assert lines == {"encoder.0": line_of("# encoder line"), "head": line_of("# head line")}


def test_every_op_reads_values_that_earlier_ops_wrote(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        x = torch.randn(4, 4)
        y = x.mm(x)
        z = y.t()[1:].relu()
        z.sum()

    _, trace = record(tmp_path, run, capture="ops")
    named = {op.name: op for op in trace.ops if not op.flags & OpFlag.COMPOSITE}
    product = named["aten::mm"].outputs[0].value_id
    assert named["aten::relu"].inputs[0].value_id == product, "views keep their base's value"
    assert named["aten::sum"].inputs[0].value_id == named["aten::relu"].outputs[0].value_id


def test_a_bad_row_written_before_a_good_one_is_found(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        table = torch.zeros(4, 4)
        for row in range(4):
            table[row] = torch.ones(4) / (row - 1)  # divides by zero
        weight = torch.ones(4, requires_grad=True)
        ((table * weight).sum() * 0).backward()

    session, _ = record(tmp_path, run)
    assert first_cause(session)["op"] == "aten::div"
    assert first_cause(session)["source"]["line"] == line_of("# divides by zero")
    assert first_cause(session)["exact"]


def test_a_value_in_reused_memory_is_not_blamed_on_the_old_writer(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        for _ in range(50):
            torch.log(torch.zeros(1000))  # bad, and thrown away
            fine = torch.ones(1000, requires_grad=True)
            (fine * 2).sum().backward()

    session, _ = record(tmp_path, run)
    assert not [finding for finding in session.findings if finding["severity"] == "error"]


class Halve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / (gradient - 1)  # custom backward line


def test_a_custom_backward_is_blamed_at_its_own_line(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        weight = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        Halve.apply(weight).sum().backward()
        optimizer.step()

    session, _ = record(tmp_path, run)
    assert first_cause(session)["source"]["line"] == line_of("# custom backward line")
    assert first_cause(session)["phase"] == "backward"


@pytest.mark.parametrize("options", [{}, {"foreach": True}])
def test_an_optimizer_whose_eps_is_zero_in_its_dtype_is_named(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    def run(session: Any) -> None:
        weight = nn.Parameter(torch.ones(8, dtype=torch.float16))
        optimizer = torch.optim.Adam([weight], **options)
        mask = torch.ones(8, dtype=torch.float16)
        mask[3] = 0
        (weight * mask).sum().backward()
        optimizer.step()  # the update

    session, _ = record(tmp_path, run)
    cause = first_cause(session)
    assert cause["phase"] == "optimizer"
    assert cause["source"]["line"] == line_of("# the update")
    assert not _global_optimizer_pre_hooks


def test_looking_at_an_update_again_changes_neither_parameters_nor_state(tmp_path: Path) -> None:
    def train() -> tuple[torch.Tensor, torch.Tensor]:
        weight = nn.Parameter(torch.ones(8, dtype=torch.float16))
        optimizer = torch.optim.Adam([weight])
        for _ in range(3):
            optimizer.zero_grad()
            (weight * torch.arange(8, dtype=torch.float16)).sum().backward()
            optimizer.step()
        return weight.detach(), optimizer.state[weight]["exp_avg_sq"]

    plain = train()
    traced: list[Any] = []
    record(tmp_path, lambda session: traced.extend(train()))
    for before, after in zip(plain, traced, strict=True):
        assert torch.equal(before, after.detach()) or (
            torch.equal(before.isnan(), after.isnan())
            and torch.equal(before.nan_to_num(), after.nan_to_num())
        )
    assert plain[0].isnan().any()


def test_raise_stops_at_the_line_that_reads_the_bad_value(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        x = torch.zeros(3)
        (x / x).sum().item()  # read here
        raise AssertionError("the program went on")

    with pytest.raises(tl.NonFiniteError) as caught:
        record(tmp_path, run, nonfinite="raise")
    frames = [f for f in traceback.extract_tb(caught.value.__traceback__) if f.filename == __file__]
    assert frames[-1].lineno == line_of("# read here")


def test_raise_comes_before_the_update_so_parameters_stay_good(tmp_path: Path) -> None:
    weight = torch.zeros(3, requires_grad=True)

    def run(session: Any) -> None:
        optimizer = torch.optim.SGD([weight], lr=0.1)
        weight.sqrt().sum().backward()
        optimizer.step()

    with pytest.raises(tl.NonFiniteError):
        record(tmp_path, run, nonfinite="raise")
    assert torch.equal(weight, torch.zeros(3))


def test_ops_of_many_threads_are_told_apart(tmp_path: Path) -> None:
    seen: list[int] = []

    def work() -> None:
        seen.append(threading.get_native_id())
        for _ in range(50):
            torch.ones(3).exp()

    def run(session: Any) -> None:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    _, trace = record(tmp_path, run, capture="ops")
    counts: dict[int, int] = {}
    for op in trace.ops:
        if op.name == "aten::exp":
            counts[op.tid] = counts.get(op.tid, 0) + 1
    assert counts == dict.fromkeys(seen, 50)


def test_a_forked_child_leaves_the_parents_trace_alone(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        torch.ones(3).exp()
        child = os.fork()
        if child == 0:
            torch.ones(3).log()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        torch.ones(3).tan()

    _, trace = record(tmp_path, run, capture="ops")
    names = [op.name for op in trace.ops]
    assert "aten::exp" in names and "aten::tan" in names
    assert "aten::log" not in names


def test_nothing_is_observed_after_the_session(tmp_path: Path) -> None:
    record(tmp_path, lambda session: torch.ones(3).exp())
    before = build.load().counters()["ops"]
    torch.ones(3).exp()
    assert build.load().counters()["ops"] == before


def test_a_profiler_sees_the_optimizers_ops_although_the_observer_does_not(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)

    def profiled() -> list[str]:
        weight.grad = torch.ones(3)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            optimizer.step()
        return sorted(e.name for e in profile.events() if e.name.startswith("aten::"))

    profiled()
    plain = profiled()
    traced: list[str] = []
    record(tmp_path, lambda session: traced.extend(profiled()))
    assert set(plain) <= set(traced)


class Unnameable(nn.Linear):
    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("this model cannot be listed")


def test_a_failing_hook_is_noted_and_the_program_goes_on(tmp_path: Path) -> None:
    results: list[torch.Tensor] = []

    def run(session: Any) -> None:
        results.append(Unnameable(2, 2)(torch.ones(1, 2)))

    _, trace = record(tmp_path, run, capture="ops")
    assert results[0].shape == (1, 2)
    notes = [event["message"] for event in trace.reader.events("note")]
    assert any("could not be named" in note for note in notes)


def test_an_update_that_raises_leaves_the_observer_watching(tmp_path: Path) -> None:
    class Failing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise ValueError("no update today")

    def run(session: Any) -> None:
        weight = nn.Parameter(torch.ones(2))
        weight.sum().backward()
        with pytest.raises(ValueError, match="no update today"):
            Failing([weight], lr=0.1).step()
        session.step()
        torch.log(torch.zeros(2)).sum().item()  # after the failure

    session, _ = record(tmp_path, run)
    assert first_cause(session)["source"]["line"] == line_of("# after the failure")


def test_a_second_model_at_the_first_ones_address_gets_its_own_names(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        for number in range(20):
            model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            if number % 2:
                model = nn.Sequential(nn.Identity(), nn.Linear(2, 2), nn.Linear(2, 2))
            model(torch.ones(1, 2))
            del model
            gc.collect()

    _, trace = record(tmp_path, run, capture="ops")
    modules = [op.module.rpartition(".")[2] for op in trace.ops if op.name == "aten::addmm"]
    assert modules == [str(i) for number in range(20) for i in ((1, 2) if number % 2 else (0, 1))]


def test_unusual_tensors_pass_through_unharmed(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        torch.func.vmap(torch.sin)(torch.ones(3, 2))
        torch.func.grad(lambda x: (x**2).sum())(torch.ones(3))
        torch.eye(3).to_sparse().mm(torch.ones(3, 3))
        torch.ones(2, device="meta").exp()
        torch.ones(2, dtype=torch.complex64).conj().mul(2)
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8).dequantize()
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]).sin()
        torch.empty(0).exp()
        with torch._subclasses.FakeTensorMode():
            torch.ones(2).exp()
        torch.ones(2).expand(3, 2).exp()

    session, trace = record(tmp_path, run, capture="ops")
    assert not [e for e in trace.reader.events("note") if e["kind"] == "hook_failed"]
    assert not session.findings


def test_public_frames_find_the_same_lines(tmp_path: Path) -> None:
    """On Pythons whose frames are not read directly the public interface is used."""
    path = tmp_path / "p.tltrace"
    program = f"""if True:
        import torch, tracelens as tl
        from torch import nn
        with tl.trace({str(path)!r}, engine="native", capture="ops", quiet=True):
            model = nn.Sequential(nn.Linear(2, 2))
            model(torch.ones(1, 2)).sum().backward()
        for op in tl.load({str(path)!r}).ops:
            if op.name in ("aten::addmm", "aten::mm"):
                print(op.name, op.source.line, op.module)
    """
    outputs = []
    for public in ("", "1"):
        environment = {**os.environ, "TRACELENS_PUBLIC_FRAMES": public}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        shutil.rmtree(path)
    assert outputs[0] == outputs[1] == "aten::addmm 6 0\naten::mm 6 0\n"
