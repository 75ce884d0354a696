"""Train a convolutional network on handwritten digits, every step under guard.

    python examples/digits_cnn.py             # learns; the trace is clean
    python examples/digits_cnn.py --bug       # divides by the deviation of a blank image

The bug is one that real pipelines have: an image of one colour has the standard deviation 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tracelens as tl

EPOCHS = 3
BATCH = 64


def normalised(pixels: Tensor, *, safe: bool) -> Tensor:
    """Give every image the mean 0 and the deviation 1: (batch, 1, 8, 8) -> the same."""
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    deviation = pixels.std(dim=(1, 2, 3), keepdim=True)
    if safe:
        deviation = deviation.clamp_min(1e-6)
    return (pixels - mean) / deviation


def network() -> nn.Sequential:
    """Two convolutions and a linear head: (batch, 1, 8, 8) -> (batch, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def main() -> None:
    """Train, and tell how well the network reads digits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bug", action="store_true", help="divide by a deviation that can be 0")
    parser.add_argument("-o", "--output", type=Path, default=Path("digits-cnn.tltrace"))
    options = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    pixels = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(digits.target)
    if options.bug:
        pixels[1000] = 0.5
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    with tl.trace(options.output, nonfinite="raise") as session:
        tl.watch(model)
        for epoch in range(EPOCHS):
            for rows in torch.randperm(len(pixels)).split(BATCH):
                images = normalised(pixels[rows], safe=not options.bug)
                loss = nn.functional.cross_entropy(model(images), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                session.step(loss=loss)
            print(f"epoch {epoch}  loss {loss.item():.4f}", flush=True)
    model.eval()
    with torch.no_grad():
        guesses = model(normalised(pixels, safe=True)).argmax(dim=1)
    print(f"{100 * (guesses == labels).float().mean():.1f} % of the digits are read right")


if __name__ == "__main__":
    main()
