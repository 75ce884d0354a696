"""Train a small network on handwritten digits until a real numeric bug ends it.

The loss below is written by hand, as in a textbook, and it works: the network learns. But it
learns so well that after some hundred steps the probability of a wrong digit is too small for
float32 and becomes 0. Its logarithm is -Inf, and 0 * -Inf makes the loss NaN. Nothing in this
file asks for it to happen.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tracelens as tl

EPOCHS = 60
BATCH = 64


class Classifier(nn.Module):
    """Two hidden layers, from 8x8 pixels to ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return one logit per digit: (batch, 64) -> (batch, 10)."""
        return self.head(self.hidden(pixels))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -sum(target * log(probability)): (batch, 10) and (batch,) -> a scalar."""
    targets = nn.functional.one_hot(labels, 10).float()
    probabilities = torch.softmax(logits, dim=1)
    return -(targets * torch.log(probabilities)).sum(dim=1).mean()


def train(path: Path) -> None:
    """Train with every step recorded to ``path``; a NaN raises before it is applied."""
    digits = load_digits()
    pixels = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)

    @tl.trace(path, nonfinite="raise")
    def train_step(rows: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(pixels[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        return loss

    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(pixels)).split(BATCH):
            loss = train_step(rows)
            tl.step(loss=loss)
        print(f"epoch {epoch:2}  loss {loss.item():.4f}", flush=True)


def main() -> int:
    """Run the demonstration: 0 if the NaN came and was explained."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    path = Path("demo-out") / f"digits-{time.strftime('%Y%m%d-%H%M%S')}.tltrace"
    path.parent.mkdir(exist_ok=True)
    try:
        train(path)
    except tl.NonFiniteError as error:
        print(f"\n{error}\n")
        print(f"The trace is in {path}. Open it with:")
        for verb in ("view", "why", "debug"):
            print(f"    {Path(sys.executable).parent / 'tracelens'} {verb} {path}")
        return 0
    print("The network was trained without a NaN: this machine's arithmetic was kind.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
