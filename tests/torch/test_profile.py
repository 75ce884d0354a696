"""``profile=True``: ops, spans, kernels and memory from Kineto, read in this process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kineto_json import events_of
from torch import nn
from torch.profiler import ProfilerActivity
from torch.utils.data import DataLoader, Dataset

import tracelens as tl
from tracelens.analysis.profile.data import load_profile
from tracelens.convert import kineto
from tracelens.events import OpFlag
from tracelens.storage.reader import open_trace
from tracelens.storage.recovery import repair
from tracelens_torch import profile_events, profile_tables
from tracelens_torch.profile_tables import Host, Steps

DATA = Path(__file__).parents[2].parent / "shared" / "data"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


class Training:
    """A small model with Adam whose steps are always the same."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Net()
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.batch = torch.randn(16, 32)

    def step(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = self.model(self.batch).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss


STEP = Training.step.__code__.co_firstlineno
LINES = {
    "forward": Net.forward.__code__.co_firstlineno + 1,
    "loss": STEP + 2,
    "backward": STEP + 3,
    "update": STEP + 4,
}


def recorded(path: Path, steps: int = 3, **options: Any) -> Training:
    training = Training()
    with tl.trace(path, profile=True, quiet=True, **options) as session:
        for _ in range(steps):
            training.step()
            session.step()
    return training


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with open_trace(path) as trace:
        return list(trace.sql(query))


def notes(path: Path) -> list[str]:
    with open_trace(path) as trace:
        return [event["message"] for event in trace.events("note")]


def test_every_op_is_profiled_once_with_its_time_in_its_step(tmp_path: Path) -> None:
    recorded(tmp_path / "t")
    ops = rows(
        tmp_path / "t",
        "SELECT o.step, o.name, o.flags, o.start_ns - s.start_ns, o.duration_ns, s.duration_ns "
        "FROM ops o JOIN steps s USING (step)",
    )
    assert {op[0] for op in ops} == {0, 1, 2}
    assert all(op[2] & OpFlag.PROFILED for op in ops)
    assert all(op[3] >= 0 and op[4] >= 0 and op[3] + op[4] <= op[5] for op in ops)
    count = defaultdict(int)
    for op in ops:
        count[op[1]] += 1
    assert count["aten::linear"] == 6
    assert count["aten::addmm"] == 6
    assert notes(tmp_path / "t") == []


def test_ops_are_those_of_torch_profiler(tmp_path: Path) -> None:
    recorded(tmp_path / "t", steps=2)
    training = Training()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as theirs:
        for _ in range(2):
            training.step()
    expected: dict[str, int] = defaultdict(int)
    assert theirs.profiler is not None and theirs.profiler.kineto_results is not None
    for event in theirs.profiler.kineto_results.events():
        if event.activity_type() == "cpu_op":
            expected[event.name()] += 1
    found = dict(rows(tmp_path / "t", "SELECT name, count(*) FROM ops GROUP BY name"))
    assert found == dict(expected)


def test_ops_have_parents_phases_modules_and_the_users_lines(tmp_path: Path) -> None:
    recorded(tmp_path / "t")
    found = rows(
        tmp_path / "t",
        "SELECT o.name, o.phase, o.module, o.line, p.name, f.name FROM ops o "
        "LEFT JOIN ops p ON p.op_id = o.parent_id LEFT JOIN ops f ON f.op_id = o.fwd_op_id "
        "WHERE o.step = 1 ORDER BY o.start_ns",
    )
    addmm = [op for op in found if op[0] == "aten::addmm"]
    assert [(op[1], op[2], op[3], op[4]) for op in addmm] == [
        ("forward", "first", LINES["forward"], "aten::linear"),
        ("forward", "second", LINES["forward"], "aten::linear"),
    ]
    backward = [op for op in found if op[0] == "AddmmBackward0"]
    assert [(op[1], op[2], op[3], op[5]) for op in backward] == [
        ("backward", "second", LINES["forward"], "aten::addmm"),
        ("backward", "first", LINES["forward"], "aten::addmm"),
    ]
    mm = [op for op in found if op[0] == "aten::mm"]
    assert {(op[1], op[3], op[5]) for op in mm} == {("backward", LINES["forward"], "aten::addmm")}
    means = {op[1:4] for op in found if op[0] == "aten::mean"}
    assert means == {("forward", None, LINES["loss"])}
    updates = {(op[1], op[3]) for op in found if op[0] in ("aten::addcdiv_", "aten::lerp_")}
    assert updates == {("optimizer", LINES["update"])}


def test_shapes_and_scalars_of_inputs_are_kept(tmp_path: Path) -> None:
    recorded(tmp_path / "t", steps=1)
    shapes, dtypes, values = rows(
        tmp_path / "t",
        "SELECT in_shapes, in_dtypes, in_values FROM ops WHERE name = 'aten::addmm' LIMIT 1",
    )[0]
    assert json.loads(shapes)[:3] == [[32], [16, 32], [32, 32]]
    assert json.loads(dtypes)[:3] == ["float", "float", "float"]
    assert json.loads(values)[3:] == ["1", "1"]


def test_at_the_ops_level_an_op_is_written_once_and_named_by_memory(tmp_path: Path) -> None:
    recorded(tmp_path / "t", capture="ops")
    flags = rows(tmp_path / "t", "SELECT DISTINCT flags & 4096 FROM ops")
    assert flags == [(0,)]
    made = rows(
        tmp_path / "t",
        "SELECT o.name, o.line, m.line FROM memory m JOIN ops o USING (op_id) "
        "WHERE m.size_bytes > 0 AND m.step = 1",
    )
    assert ("aten::addmm", LINES["forward"], LINES["forward"]) in made
    assert all(line == own for _, own, line in made)
    unknown = rows(
        tmp_path / "t",
        "SELECT count(*) FILTER (WHERE op_id IS NULL), count(*) FROM memory "
        "WHERE step = 1 AND size_bytes > 8",  # numbers become tensors outside of any op
    )
    assert unknown[0][0] == 0 < unknown[0][1]


def test_only_the_steps_of_the_schedule_are_profiled(tmp_path: Path) -> None:
    schedule = tl.schedule(wait=1, warmup=1, active=2, repeat=2)
    recorded(tmp_path / "t", steps=9, schedule=schedule)
    assert rows(tmp_path / "t", "SELECT DISTINCT step FROM ops ORDER BY step") == [
        (2,), (3,), (6,), (7,),
    ]  # fmt: skip
    with open_trace(tmp_path / "t") as trace:
        assert load_profile(trace).steps.step.tolist() == [2, 3, 6, 7]
    ids = rows(tmp_path / "t", "SELECT count(*), count(DISTINCT span_id) FROM spans")
    assert ids[0][0] == ids[0][1] > 0


@pytest.mark.parametrize("capture", ["guard", "ops"])
def test_what_is_computed_does_not_change(tmp_path: Path, capture: str) -> None:
    plain = Training()
    expected = [plain.step() for _ in range(4)]
    state = torch.get_rng_state()
    watched = Training()
    with tl.trace(tmp_path / "t", capture=capture, profile=True, quiet=True) as session:
        for loss in expected:
            assert torch.equal(watched.step(), loss)
            session.step()
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_memory_at_the_peak_is_split_by_owner(tmp_path: Path) -> None:
    training = recorded(tmp_path / "t", steps=4)
    size = sum(p.numel() * p.element_size() for p in training.model.parameters())
    counts = 4 * len(list(training.model.parameters()))  # Adam's own step numbers
    for schedule, name in ((None, "t"), (tl.schedule(wait=2, active=2, repeat=1), "late")):
        if name == "late":
            recorded(tmp_path / name, steps=4, schedule=schedule)
        held: dict[str | None, int] = defaultdict(int)
        peak, at_peak = 0, {}
        for owner, change in rows(tmp_path / name, "SELECT owner, size_bytes FROM memory"):
            held[owner] += change
            if sum(held.values()) >= peak:
                peak, at_peak = sum(held.values()), dict(held)
        assert at_peak["parameter"] == size
        assert at_peak["optimizer_state"] == 2 * size + counts
        assert at_peak["gradient"] == size
        total = rows(tmp_path / name, "SELECT max(allocated_bytes) FROM memory")[0][0]
        assert total == peak


def test_activations_are_what_a_backward_pass_finds(tmp_path: Path) -> None:
    recorded(tmp_path / "t", steps=2)
    found = rows(
        tmp_path / "t",
        "SELECT DISTINCT o.name FROM memory m JOIN ops o USING (op_id) "
        "WHERE m.owner = 'activation' AND m.size_bytes > 0",
    )
    assert {"aten::addmm", "aten::clamp_min"} <= {name for (name,) in found}
    assert rows(tmp_path / "t", "SELECT count(*) FROM memory WHERE owner = 'temporary'")[0][0] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it takes a GPU")
def test_the_device_is_named_for_the_roofline(tmp_path: Path) -> None:
    weight = torch.randn(64, 64, device="cuda", requires_grad=True)
    with tl.trace(tmp_path / "t", profile=True, quiet=True) as session:
        for _ in range(2):
            (weight @ weight).sum().backward()
            session.step()
    with open_trace(tmp_path / "t") as reader:
        named = [note["name"] for note in reader.notes() if note["kind"] == "device"]
    assert named == [torch.cuda.get_device_name(0)]


def test_a_profiler_of_the_program_goes_first(tmp_path: Path) -> None:
    before = torch.autograd.profiler._enable_profiler
    training = Training()
    with tl.trace(tmp_path / "t", profile=True, quiet=True) as session:
        training.step()
        session.step()
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as theirs:
            training.step()
            session.step()
        for _ in range(2):  # the first of them began under the program's profiler
            training.step()
            session.step()
    assert any(event.name == "aten::addmm" for event in theirs.events())
    steps = {step for (step,) in rows(tmp_path / "t", "SELECT step FROM ops")}
    assert steps == {0, 3}
    with open_trace(tmp_path / "t") as reader:
        assert load_profile(reader).steps.step.tolist() == [0, 3], "other steps are not idle"
    assert any("torch.profiler" in note for note in notes(tmp_path / "t"))
    assert torch.autograd.profiler._enable_profiler is before
    assert not torch._C._autograd._profiler_enabled()


def test_steps_that_change_threads_are_kept_until_their_own_thread_ends_one(tmp_path: Path) -> None:
    training = Training()
    schedule = tl.schedule(active=2, wait=1)
    with tl.trace(tmp_path / "t", profile=True, schedule=schedule, quiet=True) as session:
        for number in range(6):
            training.step()
            mark = threading.Thread(target=session.step) if number == 2 else None
            if mark is None:
                session.step()
            else:
                mark.start()
                mark.join()
    steps = {step for (step,) in rows(tmp_path / "t", "SELECT step FROM ops")}
    assert {1, 2, 4, 5} <= steps
    assert any("steps change threads" in note for note in notes(tmp_path / "t"))
    assert not torch._C._autograd._profiler_enabled()


def finished_profile() -> Any:
    """Return Kineto's result of a step and of some ops with odd arguments."""
    from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler

    from tracelens_torch.profile import _config

    activities = {ProfilerActivity.CPU}
    training = Training()
    _prepare_profiler(_config(activities), activities)
    _enable_profiler(_config(activities), activities)
    training.step()
    torch.full((3,), float("inf")).clamp(min=-1.5, max=1e12)
    torch.cat([torch.ones(2), torch.ones(2) * 0.1]).std(dim=[0], correction=1.5)
    return _disable_profiler()


def test_a_live_profile_reads_as_the_importer_reads_its_file(tmp_path: Path) -> None:
    result = finished_profile()
    events = profile_events.read(result)
    host = Host(events)

    def name(row: int) -> str | None:
        return events.names[events.name[row]] if row >= 0 else None

    ours = [
        (
            name(row),
            profile_tables.PHASES[host.phase[row]],
            name(host.op_around[row]),
            name(host.forward[row]),
            int(events.end_ns[row] - events.start_ns[row]),
            *(
                events.texts[column[row]] if column[row] >= 0 else None
                for column in (events.shapes, events.dtypes, events.values)
            ),
        )
        for row in host.ops.tolist()
    ]
    result.save(str(tmp_path / "kineto.json"))
    kineto.convert(tmp_path / "kineto.json", tmp_path / "t")
    theirs = rows(
        tmp_path / "t",
        "SELECT o.name, o.phase, p.name, f.name, o.duration_ns, o.in_shapes, o.in_dtypes, "
        "o.in_values FROM ops o LEFT JOIN ops p ON p.op_id = o.parent_id "
        "LEFT JOIN ops f ON f.op_id = o.fwd_op_id ORDER BY o.op_id",
    )
    assert ours == theirs


def test_the_readers_in_cpp_and_in_python_tell_the_same() -> None:
    from tracelens_torch import native_profile

    if native_profile.load() is None:
        pytest.skip("no C++ compiler")
    result = finished_profile()
    fast, slow = profile_events.read(result), profile_events.read_in_python(result)
    texts = {"name": "names", "shapes": "texts", "dtypes": "texts", "values": "texts"}
    for name in profile_events.Events.__slots__:
        one, other = getattr(fast, name), getattr(slow, name)
        if name in texts:
            one = [getattr(fast, texts[name])[at] if at >= 0 else None for at in one]
            other = [getattr(slow, texts[name])[at] if at >= 0 else None for at in other]
            assert one == other, name
        elif isinstance(one, np.ndarray):
            assert np.array_equal(one, other), name
    for name in profile_events.Allocations.__slots__:
        assert np.array_equal(getattr(fast.allocations, name), getattr(slow.allocations, name))


class Rows(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((32,), float(index)).sin()


def test_workers_of_a_dataloader_are_left_alone_and_its_batches_are_inputs(tmp_path: Path) -> None:
    training = Training()

    with tl.trace(tmp_path / "t", profile=True, quiet=True) as session:
        for batch in DataLoader(Rows(), batch_size=16, num_workers=1):
            training.batch = batch
            training.step()
            session.step()
    # Batches of workers are in memory that they share; of this process's own, in its allocator's.
    with tl.trace(tmp_path / "own", profile=True, quiet=True) as session:
        for batch in DataLoader(Rows(), batch_size=16):
            training.batch = batch
            training.step()
            session.step()
    steps = rows(tmp_path / "t", "SELECT DISTINCT step FROM ops WHERE name = 'aten::addmm'")
    assert sorted(steps) == [(0,), (1,), (2,), (3,)]
    assert rows(tmp_path / "t", "SELECT count(*) FROM ops WHERE name = 'aten::sin'") == [(0,)]
    assert rows(tmp_path / "t", "SELECT count(*) > 0 FROM spans WHERE kind = 'data'") == [(True,)]
    owners = rows(tmp_path / "own", "SELECT DISTINCT owner FROM memory WHERE size_bytes = 2048")
    assert ("input",) in owners


KILLED = """
import os, signal, sys, torch
import tracelens as tl
from torch import nn
model = nn.Linear(8, 8)
with tl.trace(sys.argv[1], profile=True, quiet=True,
              schedule=tl.schedule(wait=1, active=1)) as session:
    for step in range(4):
        model(torch.ones(4, 8)).sum().backward()
        session.step()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_program_keeps_the_stretches_that_ended(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "t")], timeout=120)
    assert done.returncode == -signal.SIGKILL
    repair(tmp_path / "t")
    assert rows(tmp_path / "t", "SELECT DISTINCT step FROM ops WHERE flags & 4096 ORDER BY 1") == [
        (1,), (3,),
    ]  # fmt: skip


def test_run_profile_needs_no_change_of_the_program_and_prints_nothing(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import torch\nx = torch.ones(8, 8)\nprint(float((x @ x).sum()))\n")
    command = [sys.executable, "-m", "tracelens", "run", "--profile", "-q", "-o"]
    done = subprocess.run(
        [*command, str(tmp_path / "t"), str(program)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TRACELENS_PROFILE": ""},
    )
    assert done.returncode == 0 and done.stdout == "512.0\n", done.stderr
    assert done.stderr == ""
    names = {name for (name,) in rows(tmp_path / "t", "SELECT name FROM ops WHERE line = 3")}
    assert {"aten::matmul", "aten::mm", "aten::sum"} <= names


REAL = {
    "h100_gaunernst_bert-small-uncased": "h100_gaunernst_bert-small-uncased",
    "h100_Qwen_Qwen1.5-0.5B-Chat": "h100_Qwen_Qwen1.5-0.5B-Chat",
    "nccl_a100_2ranks_r0": "nccl_a100_2ranks_r0",
}


@pytest.mark.parametrize("name", REAL)
def test_real_kernels_are_all_kept_and_tied_to_ops_around_their_launches(name: str) -> None:
    golden_file = DATA / "golden_profiles.json"
    found = sorted((DATA / "profiles" / name).rglob("*.json*")) if golden_file.exists() else []
    if not found:
        pytest.skip("real traces are not here")
    golden = json.loads(golden_file.read_text())[f"shared/{REAL[name]}"]
    events = events_of(max(found, key=lambda path: path.stat().st_size))
    host = Host(events)
    ids = np.arange(len(events))
    none = np.zeros(0, dtype=np.int64)
    table = profile_tables.kernels_table(events, host, ids, ids, Steps(none, none, none), 0)
    kinds = np.array(table["kind"].texts)[table["kind"].codes]
    is_kernel = np.isin(kinds, ("kernel", "comm"))
    assert int(is_kernel.sum()) == golden["n_kernels"]
    total_us = float(table["duration_ns"][is_kernel].sum()) / 1e3
    assert total_us == pytest.approx(golden["kernel_sum_us"], rel=1e-3)
    linked = ~table["op_id"].null
    op, span = table["op_id"].values[linked], table["span_id"].values[linked]
    launched = ~table["span_id"].null[linked]
    assert linked.mean() > 0.4
    # The call that launched a kernel lies within the op that the kernel is tied to.
    op, span = op[launched], span[launched]
    assert np.all(events.kind[op] == profile_events.Kind.OP)
    assert np.all(events.start_ns[op] <= events.start_ns[span])
    assert np.all(events.end_ns[span] <= events.end_ns[op])
    # ... and Kineto's own link, where it has one, is that op or one around it.
    theirs = _linked_op(events, table["start_ns"], linked)
    for ours, other in zip(table["op_id"].values[linked].tolist(), theirs, strict=True):
        while other >= 0 and ours >= 0 and ours != other:
            ours = int(host.op_around[ours])
        assert other < 0 or ours == other


def _linked_op(events: Any, start_ns: Any, chosen: Any) -> list[int]:
    device = np.flatnonzero(np.isin(events.kind, profile_events.DEVICE_KINDS))
    device = device[np.argsort(events.start_ns[device], kind="stable")]
    of = {
        corr: row
        for row, (corr, kind) in enumerate(
            zip(events.corr.tolist(), events.kind.tolist(), strict=True)
        )
        if kind == profile_events.Kind.OP and corr
    }
    assert np.array_equal(events.start_ns[device], start_ns)
    return [of.get(linked, -1) for linked in events.linked[device][chosen].tolist()]
