"""Train on two processes with DistributedDataParallel, both in one trace.

    python examples/ddp.py                # rank 1 waits 20 ms a step for its data
    tracelens summary ddp.tltrace         # a shard each

It starts its own processes; with `torchrun` it works as well.
"""

from __future__ import annotations

import os
import socket
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import tracelens as tl

RANKS = 2
STEPS = 12


def train(rank: int, port: int) -> None:
    """Train one rank."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    torch.manual_seed(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with tl.trace("ddp.tltrace", capture="ops") as session:
        for _ in range(STEPS):
            time.sleep(0.02 * rank)
            inputs = torch.randn(64, 32)
            loss = (model(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            session.step(loss=loss)
    print(f"rank {rank}  loss {loss.item():.4f}", flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Start the processes, unless `torchrun` has."""
    if "RANK" in os.environ:
        train(int(os.environ["RANK"]), int(os.environ["MASTER_PORT"]))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(train, args=(port,), nprocs=RANKS)


if __name__ == "__main__":
    main()
