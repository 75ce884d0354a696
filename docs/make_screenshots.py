"""Draw ``docs/tui-*.svg``: the screens of ``tracelens view`` on a small training that goes wrong.

The program is recorded anew each time, so the pictures show what the screens say today; its times
are those of the machine it ran on.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from textual.pilot import Pilot

from tracelens_tui.app import TraceLensApp

ROOT = Path(__file__).resolve().parents[1]
SIZE = (112, 34)
LARGEST_BYTES = 300_000

PROGRAM = '''\
"""A classifier whose entropy bonus takes the logarithm of a probability of 0."""

import torch
from torch import nn

import tracelens as tl


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        wide = 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(24, 48)
        self.blocks = nn.Sequential(Block(48), Block(48))
        self.head = nn.Linear(48, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))


def entropy(logits: torch.Tensor) -> torch.Tensor:
    p = tl.tap(torch.softmax(logits, dim=-1), "probabilities")
    return -(p * torch.log(p)).sum(-1).mean()


torch.manual_seed(0)
model = tl.watch(Classifier())
optimizer = torch.optim.SGD(model.parameters(), lr=0.35)
with tl.trace("run.tltrace", capture="tensors", profile=True, quiet=True) as session:
    for step in range(24):
        x = torch.randn(32, 24)
        labels = (x.sum(1) > 0).long()
        logits = model(x) * (40.0 if step == 23 else 1.0)
        loss = nn.functional.cross_entropy(logits, labels) - 0.1 * entropy(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        session.step(loss=loss)
'''

PICTURES: dict[str, Sequence[str]] = {
    "ops": ("]", "e"),
    "tensor": ("]", "3", *["down"] * 9),
    "timeline": ("]", "4"),
    "modules": ("]", "2"),
    "profile": ("7", "right", "right", "v", "v", "v"),
}
"""Name of a picture -> the keys that lead to it."""


def main() -> None:
    """Record the program and draw its screens."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train.py").write_text(PROGRAM, encoding="utf-8")
        # Compiled under its bare name, so that no picture shows where it ran.
        run = "exec(compile(open('train.py').read(), 'train.py', 'exec'))"
        subprocess.run([sys.executable, "-c", run], cwd=folder, check=True)
        back = Path.cwd()
        os.chdir(folder)
        for name, keys in PICTURES.items():
            svg = asyncio.run(draw(Path("run.tltrace"), keys))
            # A picture loads nothing: without the fonts of the web, the reader's own is used.
            svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
            svg = re.sub(r"terminal-\d+", f"terminal-{name}", svg)
            size = len(svg.encode())
            if size > LARGEST_BYTES:
                raise SystemExit(f"tui-{name}.svg has {size:,} bytes: choose a smaller screen")
            (ROOT / "docs" / f"tui-{name}.svg").write_text(svg, encoding="utf-8")
        os.chdir(back)


async def draw(trace: Path, keys: Sequence[str]) -> str:
    """Open a trace, press keys, and return the screen as SVG."""
    app = TraceLensApp(trace)
    async with app.run_test(size=SIZE) as pilot:
        await until_read(app, pilot)
        for key in keys:
            await pilot.press(key)
            await pilot.pause(0.8)
        return app.export_screenshot(title="tracelens view run.tltrace")


async def until_read(app: TraceLensApp, pilot: Pilot[int]) -> None:
    """Wait until rows and findings are on the screen."""
    while app.model is None or not app.model.story.is_read:
        await pilot.pause(0.05)


if __name__ == "__main__":
    main()
