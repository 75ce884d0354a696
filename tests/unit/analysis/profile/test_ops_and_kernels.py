"""Rankings, the op tree, flame graphs and launches."""

from __future__ import annotations

import json
from pathlib import Path

from profile_builder import ProfileBuilder

from tracelens.analysis.profile.flame import device_flame, host_flame
from tracelens.analysis.profile.kernels import top_kernels, top_ops
from tracelens.analysis.profile.launch import launches, sync_stalls
from tracelens.analysis.profile.optree import KERNELS_UNDER_NO_OP, op_kernels, op_tree


def model(build: ProfileBuilder) -> dict[str, int]:
    """A linear layer that calls mm, called twice, an add, and a kernel without an op."""
    ids = {}
    for call in range(2):
        at = call * 1000
        where = {"module": "net.fc", "file": "train.py", "line": 7}
        ids["linear"] = build.op("aten::linear", at, at + 100, **where)
        ids["mm"] = build.op(
            "aten::mm",
            at + 10,
            at + 70,
            parent_id=ids["linear"],
            in_shapes="[[2, 2], [2, 2]]",
            **where,
        )
        build.launched("gemm", (at + 20, at + 30), (at + 40, at + 240), op_id=ids["mm"])
    ids["add"] = build.op("aten::add", 1200, 1250, module="net", file="train.py", line=9)
    build.launched("add_kernel", (1210, 1220), (1240, 1250), op_id=ids["add"])
    build.kernel("orphan", 1300, 1360)
    return ids


def test_ops_have_the_times_that_torch_profiler_defines(build: ProfileBuilder, path: Path) -> None:
    model(build)
    found = {group.name: group for group in top_ops(build.load(path))}
    assert list(found) == ["aten::mm", "aten::add", "aten::linear"]
    mm, linear = found["aten::mm"], found["aten::linear"]
    assert (mm.self_device_ns, mm.device_ns, mm.count, mm.kernels) == (400, 400, 2, 2)
    assert (linear.self_device_ns, linear.device_ns) == (0, 400)
    assert (linear.self_host_ns, linear.host_ns) == (2 * 40, 2 * 100)


def test_ops_can_be_grouped_by_module_line_and_shape(build: ProfileBuilder, path: Path) -> None:
    model(build)
    data = build.load(path)
    modules = {group.name: group for group in top_ops(data, by="module")}
    assert modules["net.fc"].device_ns == 400
    assert modules["net.fc"].host_ns == 200, "an op inside one of its own group counts once"
    lines = {group.name: group.self_host_ns for group in top_ops(data, by="line")}
    assert lines == {"train.py:7": 200, "train.py:9": 50}
    shapes = {(group.name, group.detail): group.count for group in top_ops(data, by="shape")}
    assert shapes["aten::mm", "[[2, 2], [2, 2]]"] == 2


def test_kernels_without_a_launch_count_like_any_other(build: ProfileBuilder, path: Path) -> None:
    model(build)
    data = build.load(path)
    found = top_kernels(data)
    assert [(g.name, g.count, g.total_ns, g.op) for g in found] == [
        ("gemm", 2, 400, "aten::mm"),
        ("orphan", 1, 60, ""),
        ("add_kernel", 1, 10, "aten::add"),
    ]
    by_line = {group.name: group.total_ns for group in top_kernels(data, by="line")}
    assert by_line == {"train.py:7": 400, "train.py:9": 10, "": 60}
    assert sum(group.share for group in found) == 1


def test_without_a_device_ops_are_ranked_by_host_time(build: ProfileBuilder, path: Path) -> None:
    build.op("aten::add", 0, 10)
    build.op("aten::mm", 20, 90)
    assert [(g.name, round(g.share, 3)) for g in top_ops(build.load(path))] == [
        ("aten::mm", 0.875),
        ("aten::add", 0.125),
    ]


def test_the_tree_leads_from_ops_to_kernels(build: ProfileBuilder, path: Path) -> None:
    ids = model(build)
    data = build.load(path)
    root = op_tree(data)
    assert [child.name for child in root.children] == [
        "aten::linear",
        KERNELS_UNDER_NO_OP,
        "aten::add",
    ]
    linear = root.children[0]
    (mm,) = linear.children
    (gemm,) = mm.children
    assert (linear.count, linear.device_ns, linear.self_device_ns) == (2, 400, 0)
    assert (mm.name, mm.self_device_ns) == ("aten::mm", 400)
    assert (gemm.kind, gemm.name, gemm.count, gemm.device_ns) == ("kernel", "gemm", 2, 400)
    assert root.device_ns == 470
    (kernel,) = op_kernels(data, ids["linear"])
    assert (kernel["name"], kernel["op_id"], kernel["duration_ns"]) == ("gemm", ids["mm"], 200)
    json.dumps(root.as_json())


def test_the_tree_can_start_at_modules(build: ProfileBuilder, path: Path) -> None:
    model(build)
    (net, loose) = op_tree(build.load(path), by="module").children
    assert (net.kind, net.name, net.device_ns, loose.name) == (
        "module",
        "net",
        410,
        KERNELS_UNDER_NO_OP,
    )
    assert [(child.kind, child.name) for child in net.children] == [
        ("module", "fc"),
        ("op", "aten::add"),
    ]


def test_a_tree_deeper_than_allowed_is_cut(build: ProfileBuilder, path: Path) -> None:
    parent = None
    for depth in range(50):
        parent = build.op(f"op{depth}", depth, 200 - depth, parent_id=parent)
    build.launched("k", (60, 61), (70, 80), op_id=parent)
    root = op_tree(build.load(path), max_depth=10)
    depth, entry = 0, root
    while entry.children:
        entry, depth = entry.children[0], depth + 1
    assert depth == 11 and entry.kind == "kernel"
    assert root.device_ns == 10


def test_flames_fold_frames_ops_and_kernels(build: ProfileBuilder, path: Path) -> None:
    model(build)
    data = build.load(path)
    device = device_flame(data)
    assert device is not None
    stacks = dict(device.stacks)
    assert stacks["net", "fc", "aten::linear", "aten::mm", "gemm"] == 400
    assert stacks["orphan",] == 60
    assert device.total_ns == 470
    host = host_flame(data)
    assert host is not None and host.source == "ops"
    assert dict(host.stacks)["aten::linear", "aten::mm"] == 120


def test_flames_prefer_samples_and_python_frames(build: ProfileBuilder, path: Path) -> None:
    build.op("aten::mm", 0, 10)
    outer = build.span("python", "train.py(1): main", 0, 100)
    build.span("python", "model.py(2): forward", 10, 40, parent_id=outer)
    flame = host_flame(build.load(path))
    assert flame is not None and flame.source == "python"
    assert flame.stacks == (
        (("train.py(1): main",), 70),
        (("train.py(1): main", "model.py(2): forward"), 30),
    )
    sampled = ProfileBuilder()
    sampled.sample("main (a.py:1)\nf;g (a.py:2)", 30)
    sampled.sample("main (a.py:1)", 10)
    flame = host_flame(sampled.load(path.with_name("samples.tltrace")))
    assert flame is not None
    assert flame.folded() == "main (a.py:1);f,g (a.py:2) 30\nmain (a.py:1) 10"


def test_launches_tell_delay_queue_and_starved_streams(build: ProfileBuilder, path: Path) -> None:
    build.launched("a", (0, 10), (30, 100))
    build.launched("b", (20, 30), (100, 200))
    build.launched("c", (40, 50), (200, 260_000))
    build.launched("d", (270_000, 270_010), (270_005, 270_020))  # the stream had run dry
    build.kernel("unlinked", 300_000, 300_010)
    found = launches(build.load(path))
    assert found is not None
    assert (found.launches, found.linked, found.unlinked, found.host_ns) == (4, 4, 1, 40)
    assert found.mean_delay_ns == (20 + 70 + 150 + 0) / 4
    assert found.starved == 1 and found.starved_share == 1 / 3
    assert found.max_queue == 2 and found.queue["depth"][:4] == [1, 2, 1, 2]
    assert (found.short, found.short_ns) == (4, 70 + 100 + 15 + 10)
    assert not found.launch_bound


def test_one_launch_can_start_many_kernels(build: ProfileBuilder, path: Path) -> None:
    call = build.span("runtime", "cudaGraphLaunch", 0, 10, corr_id=5)
    build.kernel("a", 20, 30, corr_id=5)
    build.kernel("b", 30, 40, corr_id=5, span_id=call)
    found = launches(build.load(path))
    assert found is not None
    assert (found.launches, found.linked, found.host_ns) == (1, 2, 10)


def test_waits_of_the_host_name_their_op_and_line(build: ProfileBuilder, path: Path) -> None:
    item = build.op("aten::item", 100, 200, file="train.py", line=12)
    build.span("runtime", "cudaStreamSynchronize", 110, 190, op_id=item)
    build.span("runtime", "cudaMemcpyAsync", 101, 105, op_id=item)
    build.span("runtime", "hipMemcpyWithStream", 500, 540)
    build.kernel("a", 0, 185)
    build.kernel("b", 250, 600)
    first, second = sync_stalls(build.load(path))
    assert (first.call, first.op, first.file, first.line) == (
        "cudaStreamSynchronize", "aten::item", "train.py", 12,
    )  # fmt: skip
    assert (first.count, first.total_ns, first.drained_ns) == (1, 80, 60)
    assert (second.call, second.op, second.drained_ns) == ("hipMemcpyWithStream", "", 0)


def test_ops_that_were_recorded_and_profiled_count_once(build: ProfileBuilder, path: Path) -> None:
    build.op("aten::mm", 0, 100, flags=0)
    profiled = build.op("aten::mm", 1, 99)
    build.launched("gemm", (10, 20), (30, 90), op_id=profiled)
    (group,) = top_ops(build.load(path))
    assert (group.count, group.host_ns, group.self_device_ns) == (1, 98, 60)


def test_occupancy_is_weighted_by_time(build: ProfileBuilder, path: Path) -> None:
    build.kernel("a", 0, 10, occupancy=50.0)
    build.kernel("a", 20, 50, occupancy=90.0)
    build.kernel("b", 60, 61)
    first, second = top_kernels(build.load(path))
    assert (first.occupancy, second.occupancy) == (80.0, None)
