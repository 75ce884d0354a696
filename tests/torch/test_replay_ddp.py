"""Two ranks replay a bad step each for itself, and neither waits for the other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from tracelens.storage.reader import open_trace

PROGRAM = textwrap.dedent(
    """
    import sys
    import torch
    import torch.distributed as dist
    import tracelens as tl
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    rank, folder = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    @tl.trace
    def step(x, number):
        optimizer.zero_grad()
        out = net(x)
        if rank == 1 and number == 2:
            out = torch.log(out - 100.0) * out
        out.sum().backward()
        optimizer.step()

    with tl.trace(f"{folder}/rank{rank}.tltrace", engine="sentinel", quiet=True):
        for number in range(4):
            torch.manual_seed(10 * number + rank)
            step(torch.randn(8, 4), number)
    dist.barrier()
    dist.destroy_process_group()
    """
)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_the_rank_that_made_the_nan_names_it_and_no_collective_hangs(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), str(rank), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
    one = open_trace(tmp_path / "rank1.tltrace")
    (cause, *_) = [finding["first_cause"] for finding in one.findings()]
    assert (cause["op"], cause["step"]) == ("aten::log", 2)
    zero = open_trace(tmp_path / "rank0.tltrace")
    assert _replays(zero) and _replays(one)
    assert all((f.get("first_cause") or {}).get("op") != "aten::log" for f in zero.findings())
    assert all("other ranks" in message for message in _replays(zero)[:1])


def _replays(trace: Any) -> list[str]:
    return [e["message"] for e in trace.events("note") if e["kind"] == "replay"]
