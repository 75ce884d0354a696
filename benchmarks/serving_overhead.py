"""What `tl.guard` costs: time per request with and without it, for two models.

``python benchmarks/serving_overhead.py [--requests N]`` prints a table. Both ways take turns in
short blocks, so that a busy machine slows both; the ratio is the median over blocks of CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import tracelens as tl
from tracelens import session as sessions
from tracelens.serving import request


def mlp() -> tuple[nn.Module, torch.Tensor]:
    layers = [layer for _ in range(6) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(256, 10)), torch.randn(64, 256)


def transformer() -> tuple[nn.Module, torch.Tensor]:
    layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(4, 32, 128)


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "mlp": mlp,
    "transformer": transformer,
}


def block(model: Any, batch: torch.Tensor, requests: int) -> float:
    """Answer requests; return CPU seconds for one."""
    started = time.process_time()
    for number in range(requests):
        with request(number):
            model(batch)
    return (time.process_time() - started) / requests


def ratio(name: str, requests: int, blocks: int, directory: str) -> tuple[float, float, float]:
    """Return milliseconds a request without a guard, with it, and the median of their ratios."""
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    model.eval()
    plain, guarded, ratios = [], [], []
    with torch.inference_mode():
        block(model, batch, requests)
        for number in range(blocks):
            plain.append(block(model, batch, requests))
            # The session observes all that torch does: it is open for the guarded block alone.
            guard = tl.guard(model, path=f"{directory}/{name}-{number}.tltrace")
            block(guard, batch, max(requests // 4, 2))
            guarded.append(block(guard, batch, requests))
            session = sessions.current()
            if session is not None:
                session.close()
            after = block(model, batch, requests)
            ratios.append(2 * guarded[-1] / (plain[-1] + after))
    median = statistics.median
    return median(plain) * 1e3, median(guarded) * 1e3, median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="requests in a block")
    parser.add_argument("--blocks", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':12} {'plain ms':>10} {'guarded ms':>11} {'ratio':>7}")
    with tempfile.TemporaryDirectory() as directory:
        for name in MODELS:
            plain, guarded, slower = ratio(name, arguments.requests, arguments.blocks, directory)
            print(f"{name:12} {plain:10.3f} {guarded:11.3f} {slower:7.3f}")


if __name__ == "__main__":
    main()
