"""Op times against torch.profiler's own table, on a run recorded here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracelens.analysis.profile.data import load_profile
from tracelens.analysis.profile.kernels import top_ops
from tracelens.analysis.profile.memory import memory
from tracelens.analysis.profile.roofline import roofline
from tracelens.analysis.profile.steps import split_steps
from tracelens.convert.importers import importer_of
from tracelens.storage.reader import open_trace

torch = pytest.importorskip("torch")


def test_ops_steps_and_flops_are_those_of_torch_profiler(tmp_path: Path) -> None:
    from torch.profiler import ProfilerActivity, profile, record_function, schedule

    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with profile(
        activities=[ProfilerActivity.CPU], record_shapes=True, profile_memory=True,
        with_flops=True, schedule=schedule(wait=1, warmup=1, active=3),
    ) as profiler:  # fmt: skip
        for _ in range(5):
            with record_function("load"):
                batch = torch.randn(8, 16)
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            profiler.step()
    source, out = tmp_path / "run.json", tmp_path / "run.tltrace"
    profiler.export_chrome_trace(str(source))
    importer_of(source)(source, out)
    data = load_profile(open_trace(out))
    found = {group.name: group for group in top_ops(data)}
    expected = {
        row.key: row
        for row in profiler.key_averages()
        if row.key.startswith(("aten::", "autograd"))
    }
    assert {name for name in found if name.startswith(("aten::", "autograd"))} == set(expected)
    for name, row in expected.items():
        assert found[name].count == row.count
        assert found[name].self_host_ns == pytest.approx(row.self_cpu_time_total * 1e3, abs=2000)
        assert found[name].host_ns == pytest.approx(row.cpu_time_total * 1e3, abs=2000)
    answer = split_steps(data)
    assert [step.step for step in answer.steps] == [2, 3, 4]
    for part in ("forward", "backward", "optimizer"):
        assert answer.whole.part(part).duration_ns > 0
    counted = {
        row.key: row.flops
        for row in profiler.key_averages()
        if row.key in ("aten::mm", "aten::addmm")
    }
    lines = roofline(data)
    assert lines is not None
    for name, flops in counted.items():
        ours = sum(line.flops * line.count for line in lines.groups if line.name == name)
        biased = 3 * 8 * (32 + 4) if name == "aten::addmm" else 0
        assert ours == flops + biased, "torch.profiler does not count the bias"
    assert memory(data)[0].allocations > 0
