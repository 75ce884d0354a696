"""The Python engine, its handler in C and in Python, through the public door."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

import tracelens as tl
from tracelens import stats
from tracelens.events import OpFlag, Phase
from tracelens.storage.reader import open_trace
from tracelens_torch.opfacts import Trait, describe
from tracelens_torch.ranges import ValueRanges
from tracelens_torch.sites import Sites

HANDLERS = ["c", "python"] if stats.HAS_NATIVE else ["python"]


@pytest.fixture(params=HANDLERS, autouse=True)
def handler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(stats, "native", None)
        monkeypatch.setattr(stats, "HAS_NATIVE", False)
    return str(request.param)


def record(path: Path, run: Callable[[Any], object], **options: Any) -> tuple[Any, Any]:
    """Run under the Python engine; return the session and the trace it wrote."""
    options.setdefault("quiet", True)
    with tl.trace(path / "run.tltrace", engine="python", **options) as session:
        run(session)
    return session, tl.load(path / "run.tltrace")


def kept_ops(path: Path, run: Callable[[Any], object]) -> list[Any]:
    """Run at guard level and return the ops of the steps that a finding kept."""

    def bad(session: Any) -> None:
        run(session)
        torch.log(torch.zeros(2, requires_grad=True) * 0).sum().backward()

    return list(record(path, bad)[1].ops)


def notes(path: Path, kind: str) -> list[dict[str, Any]]:
    with open_trace(path / "run.tltrace") as reader:
        return [note for note in reader.events(kind="note") if note["kind"] == kind]


def first_cause(session: Any) -> dict[str, Any]:
    return session.findings[0]["first_cause"]


def line_of(text: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.strip().endswith(text))


def named(ops: list[Any], name: str) -> list[Any]:
    return [op for op in ops if op.name == f"aten::{name}"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(x)  # encoder line
        return self.head(hidden)  # head line


def torch_backend(session: Any) -> Any:
    return next(backend for backend in session.backends if backend.name == "torch")


def test_the_handler_is_the_one_asked_for(tmp_path: Path, handler: str) -> None:
    def run(session: Any) -> None:
        engine = torch_backend(session)._engine
        assert engine.name == "python"
        assert engine.in_c == (handler == "c")

    record(tmp_path, run)


def test_a_nan_is_named_with_its_line_and_module(tmp_path: Path) -> None:
    class Bad(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x)  # log line

    def run(session: Any) -> None:
        model = nn.Sequential(nn.Linear(4, 4), Bad())
        model(torch.zeros(2, 4) - 1e9 * torch.eye(4)[:2]).sum().backward()

    cause = first_cause(record(tmp_path, run)[0])
    assert cause["op"] == "aten::log"
    assert cause["module"] == "1"
    assert cause["phase"] == "forward"
    assert (cause["source"]["file"], cause["source"]["line"]) == (__file__, line_of("# log line"))
    assert cause["inputs"][0]["nan"] == 0
    assert cause["outputs"][0]["nan"] > 0


def test_a_nan_born_in_backward_has_its_forward_ops_line(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        x = torch.zeros(3, requires_grad=True)
        (x * torch.sqrt(x * x)).sum().backward()  # sqrt line
        optimizer = torch.optim.SGD([x], 0.1)
        optimizer.step()

    cause = first_cause(record(tmp_path, run)[0])
    assert cause["phase"] == "backward"
    assert cause["source"]["line"] == line_of("# sqrt line")


def test_backward_ops_point_at_their_forward_ops(tmp_path: Path) -> None:
    model = Net()
    ops = kept_ops(tmp_path, lambda session: model(torch.randn(3, 4)).sum().backward())
    by_id = {op.op_id: op for op in ops}
    mms = [op for op in named(ops, "mm") if op.phase is Phase.BACKWARD]
    assert mms
    for op in mms:
        forward = by_id[op.fwd_op_id]
        assert forward.name == "aten::addmm"
        assert op.source == forward.source
        assert op.module == forward.module
    lines = {op.source.line for op in named(ops, "addmm")}
    assert lines == {line_of("# encoder line"), line_of("# head line")}
    assert {op.module for op in named(ops, "addmm")} == {"encoder.0", "head"}


def test_a_custom_functions_backward_has_its_own_line(tmp_path: Path) -> None:
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x / 2

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient / 0  # custom line

    def run(session: Any) -> None:
        x = torch.ones(2, requires_grad=True)
        Half.apply(x * 3).sum().backward()
        torch.optim.SGD([x], 0.1).step()

    cause = first_cause(record(tmp_path, run)[0])
    assert cause["source"]["line"] == line_of("# custom line")
    assert cause["phase"] == "backward"


def test_a_view_has_the_value_of_its_base_and_writes_are_chained(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        x = torch.ones(6) + 1
        x[1:3].mul_(2)
        x[4:5].add_(1)
        (x[:1] + x[1:2] + x[4:5]).sum()

    ops = kept_ops(tmp_path, run)
    made, scaled, added = named(ops, "add")[0], named(ops, "mul_")[0], named(ops, "add_")[0]
    first, second = named(ops, "add")[1:3]
    assert scaled.flags & OpFlag.INPLACE
    assert scaled.inputs[0].value_id == made.outputs[0].value_id
    assert added.inputs[0].value_id == scaled.outputs[0].value_id
    assert [t.value_id for t in first.inputs] == [
        made.outputs[0].value_id, scaled.outputs[0].value_id,
    ]  # fmt: skip
    assert second.inputs[1].value_id == added.outputs[0].value_id


def test_memory_that_is_reused_does_not_lend_its_old_values(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        for _ in range(20):
            torch.ones(1000) + 1
            data = torch.arange(1000).float() * 2
            (data + 3).sum()

    ops = kept_ops(tmp_path, run)
    by_value = {t.value_id: op for op in ops for t in op.outputs}
    sums = [op for op in named(ops, "sum") if op.inputs]
    for op in sums[:20]:
        added = by_value[op.inputs[0].value_id]
        assert added.name == "aten::add"
        assert by_value[added.inputs[0].value_id].name == "aten::mul"


def test_harmless_constant_and_uninitialised_outputs_are_never_hits(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        torch.empty(64).fill_(float("nan"))
        torch.empty(1000)
        torch.full((3,), float("inf"))
        torch.ones(4).masked_fill(torch.tensor([True, False, True, False]), float("-inf"))

    session, trace = record(tmp_path, run, capture="ops")
    assert not session.findings
    assert not [op for op in trace.ops if op.flags & OpFlag.HIT]
    flags = {op.name: op.flags for op in trace.ops}
    assert flags["aten::empty"] & OpFlag.GARBAGE
    assert flags["aten::full"] & OpFlag.CONSTANT


def test_a_cast_that_overflows_is_a_hit_though_copies_are_harmless(tmp_path: Path) -> None:
    ops = kept_ops(tmp_path, lambda session: (torch.full((3,), 1e6) * 1).half().clone())
    cast, copy = named(ops, "_to_copy")[0], named(ops, "clone")[0]
    assert cast.flags & OpFlag.HIT
    assert cast.outputs[0].stats.posinf == 3
    assert not copy.flags & OpFlag.HIT


def test_every_dtype_and_layout_is_judged(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.complex64):
            torch.tensor([1.0, 2.0, 0.0], dtype=dtype).reciprocal()
        torch.zeros(4, 5).t().log()
        torch.sparse_coo_tensor([[0]], [1.0], (2,)) * 2
        torch.ones(3, device="meta") / 0
        torch.tensor([], dtype=torch.float32).log()

    ops = kept_ops(tmp_path, run)
    assert sum(bool(op.flags & OpFlag.HIT) for op in named(ops, "reciprocal")) == 4
    logs = named(ops, "log")
    assert logs[0].flags & OpFlag.HIT
    assert logs[0].outputs[0].stats.neginf == 20
    assert not logs[1].flags & OpFlag.HIT


def test_a_read_of_a_bad_value_is_a_sink(tmp_path: Path) -> None:
    session, _ = record(tmp_path, lambda session: (torch.zeros(1) / 0).sum().item())
    assert session.findings[0]["sink"]["sink"] == "read"
    assert first_cause(session)["op"] == "aten::div"


def test_raise_stops_the_program_where_the_value_is_read(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        loss = (torch.zeros(1) / 0).sum()
        loss.item()
        pytest.fail("the read went through")

    with pytest.raises(tl.NonFiniteError, match="div"):
        record(tmp_path, run, nonfinite="raise")
    assert _get_current_dispatch_mode() is None


def test_an_exception_after_a_test_for_nan_is_explained(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        bad = torch.zeros(2) / 0
        if torch.isnan(bad).any():
            raise ValueError("bad batch")

    with pytest.raises(ValueError, match="bad batch"):
        record(tmp_path, run)
    findings = tl.load(tmp_path / "run.tltrace").findings
    assert findings[0]["first_cause"]["op"] == "aten::div"


def test_an_update_that_goes_bad_is_named(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        x = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.Adam([x], eps=0.0)
        (x * 0).sum().backward()
        optimizer.step()

    session, _ = record(tmp_path, run)
    assert session.findings[0]["sink"]["sink"] == "parameter"
    assert first_cause(session)["phase"] == "optimizer"


def test_an_update_that_raises_does_not_end_the_watch(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        x = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=1e300)
        (x * 2).sum().backward()
        with pytest.raises(RuntimeError, match="overflow"):
            optimizer.step()
        session.step()
        (torch.zeros(1) / 0).sum().item()

    assert first_cause(record(tmp_path, run)[0])["op"] == "aten::div"


def test_optimizer_ops_are_left_alone_at_guard_and_seen_at_ops(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        x = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=0.1)
        (x * 2).sum().backward()
        optimizer.step()

    (tmp_path / "guard").mkdir()
    guard = kept_ops(tmp_path / "guard", run)
    assert [op.name for op in guard if op.phase is Phase.OPTIMIZER] == ["SGD.step"]
    _, trace = record(tmp_path, run, capture="ops")
    names = [op.name for op in trace.ops if op.phase is Phase.OPTIMIZER]
    assert names
    assert all(name.startswith("aten::") for name in names)


def test_ops_level_keeps_durations_layouts_and_statistics(tmp_path: Path) -> None:
    _, trace = record(tmp_path, lambda session: torch.arange(6.0).view(2, 3) * 2, capture="ops")
    ops = list(trace.ops)
    mul = named(ops, "mul")[0]
    assert mul.duration_ns is not None
    assert mul.duration_ns > 0
    assert mul.outputs[0].shape == (2, 3)
    assert mul.outputs[0].dtype == "float32"
    assert (mul.outputs[0].stats.vmin, mul.outputs[0].stats.vmax) == (0.0, 10.0)
    assert mul.outputs[0].stats.mean == pytest.approx(5.0)
    view = named(ops, "view")[0]
    assert view.flags & OpFlag.VIEW
    assert view.outputs[0].value_id == view.inputs[0].value_id


def test_more_than_four_inputs_are_all_recorded(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        torch.cat([torch.ones(2) * i for i in range(11)])

    cat = named(kept_ops(tmp_path, run), "cat")[0]
    ids = [t.value_id for t in cat.inputs]
    assert len(ids) == len(set(ids)) == 11
    assert min(ids) >= 0


def test_values_of_modules_and_taps_are_stored(tmp_path: Path) -> None:
    model = Net()
    outputs = []

    def run(session: Any) -> None:
        outputs.append(model(torch.randn(3, 4)))
        tl.tap(outputs[0].bfloat16(), "low")

    _, trace = record(tmp_path, run, capture="tensors")
    stored = trace.tensor("head/out", step=0)
    assert stored.tolist() == outputs[0].tolist()
    assert trace.tensor("low", step=0) is not None


def test_the_budget_of_values_is_kept_and_told(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        tl.tap(torch.ones(10), "small")
        tl.tap(torch.ones(10_000), "large")

    _, trace = record(tmp_path, run, capture="tensors", tensor_budget_bytes=100)
    assert trace.tensor("small", step=0).tolist() == [1.0] * 10
    (note,) = notes(tmp_path, "drop")
    assert "'large'" in note["message"]


def test_the_mode_is_gone_afterwards_and_nested_modes_work(tmp_path: Path) -> None:
    seen = []

    class Mine(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    def run(session: Any) -> None:
        with Mine():
            x = torch.ones(2, requires_grad=True)
            (x * 3).sum().backward()
            torch.optim.SGD([x], 0.1).step()
        torch.ones(1) + 1

    ops = kept_ops(tmp_path, run)
    assert named(ops, "mul")
    assert "aten::mul.Tensor" in seen
    assert _get_current_dispatch_mode() is None


def test_functorch_fake_and_inference_programs_run_unharmed(tmp_path: Path) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    def run(session: Any) -> None:
        square = torch.func.vmap(lambda v: (v * v).sum())
        assert square(torch.arange(6.0).view(2, 3)).tolist() == [5.0, 50.0]
        assert torch.func.grad(lambda v: (v**3).sum())(torch.ones(2)).tolist() == [3.0, 3.0]
        with FakeTensorMode() as fake:
            assert (fake.from_tensor(torch.ones(2, 3)) @ torch.ones(3, 4)).shape == (2, 4)
        with torch.inference_mode():
            assert (torch.ones(3) * 2).sum().item() == 6.0

    session, _ = record(tmp_path, run)
    assert not session.findings
    assert not notes(tmp_path, "hook_failed")


def test_an_error_inside_the_engine_never_reaches_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> int:
        raise RuntimeError("no site today")

    def run(session: Any) -> None:
        assert (torch.ones(3) * 2).tolist() == [2.0, 2.0, 2.0]
        assert (torch.ones(3) - 2).tolist() == [-1.0, -1.0, -1.0]
        assert torch_backend(session)._engine._recorder.failures >= 2

    monkeypatch.setattr(Sites, "make", broken)
    record(tmp_path, run)
    (note,) = notes(tmp_path, "hook_failed")
    assert "no site today" in note["message"]


def test_an_ops_own_error_comes_through_unchanged(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            torch.ones(2, 3) @ torch.ones(2, 3)
        assert (torch.ones(2) + 1).tolist() == [2.0, 2.0]

    session, _ = record(tmp_path, run)
    assert not session.findings


def test_other_threads_are_not_disturbed(tmp_path: Path) -> None:
    results: list[float] = []

    def work() -> None:
        x = torch.ones(4, requires_grad=True)
        (x * 2).sum().backward()
        results.append(float(x.grad.sum()))

    def run(session: Any) -> None:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        work()
        for thread in threads:
            thread.join()

    session, _ = record(tmp_path, run)
    assert results == [8.0] * 4
    assert not session.findings


def test_nothing_is_kept_alive_after_an_op(tmp_path: Path) -> None:
    def run(session: Any) -> None:
        x = torch.ones(3, requires_grad=True)
        y = x * 2
        alive = [weakref.ref(y), weakref.ref(y.untyped_storage())]
        y.sum().backward()
        del y
        torch.ones(1) + 1
        gc.collect()
        assert [ref() for ref in alive] == [None, None]

    record(tmp_path, run)


def test_facts_of_schemas() -> None:
    aten = torch.ops.aten
    assert describe(aten.view.default).flags & OpFlag.VIEW
    assert describe(aten.add_.Tensor).flags & OpFlag.INPLACE
    assert describe(aten.mm.out).flags & OpFlag.INPLACE
    assert not describe(aten.mm.default).flags
    assert describe(aten._foreach_add_.Scalar).written == (0,)
    assert describe(aten.native_batch_norm.default).written == (3, 4)
    assert describe(aten._native_batch_norm_legit.default).written == (3, 4)
    assert not describe(aten._native_batch_norm_legit.default).flags & OpFlag.INPLACE
    assert describe(aten._local_scalar_dense.default).traits == Trait.SCALAR_READ
    assert describe(torch.ops.profiler._record_function_enter_new.default).traits == Trait.SKIP
    assert describe(len).traits == Trait.SKIP


def test_value_ranges_follow_writes_and_reuse() -> None:
    ranges = ValueRanges()
    ranges.write(100, 200, 1, True)
    ranges.write(300, 400, 2, True)
    assert [ranges.find(100, 200), ranges.find(150, 160), ranges.find(200, 210)] == [1, 1, -1]
    ranges.write(120, 130, 3, False)
    ranges.write(125, 126, 4, False)
    assert [ranges.find(120, 124), ranges.find(125, 130), ranges.find(140, 150)] == [3, 4, 1]
    assert ranges.newest(150) == 4
    ranges.write(110, 140, 5, False)
    assert ranges.find(125, 126) == 5
    ranges.write(150, 350, 6, True)
    assert [ranges.find(100, 101), ranges.find(350, 360), ranges.find(340, 345)] == [-1, -1, 6]
    ranges.write(10, 10, 7, True)
    assert ranges.find(10, 11) == -1


@pytest.fixture(autouse=True)
def no_mode_left_behind() -> Iterator[None]:
    yield
    assert _get_current_dispatch_mode() is None
