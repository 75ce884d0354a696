"""Train a small transformer to write this project's own prose, one character at a time.

    python examples/char_transformer.py              # every op of two steps, the rest under guard
    tracelens view char-transformer.tltrace          # step through attention, forwards and back

The causal mask puts -Inf into every attention matrix, on purpose: no alarm comes of it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

import tracelens as tl

TEXTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
STEPS = 60
BATCH, LENGTH, WIDTH, HEADS, LAYERS = 16, 64, 64, 4, 2


class Block(nn.Module):
    """Masked self-attention and a feed-forward layer, each with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.before_mlp = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the block's output: (batch, length, width) -> the same."""
        batch, length, _ = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)
        weights = torch.softmax(scores + mask, dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(batch, length, WIDTH)
        x = x + self.out(mixed)
        return x + self.mlp(self.before_mlp(x))


class Writer(nn.Module):
    """Characters in, one logit per possible next character out."""

    def __init__(self, n_characters: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(n_characters, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, n_characters)

    def forward(self, text: Tensor) -> Tensor:
        """Return logits: (batch, length) -> (batch, length, characters)."""
        length = text.shape[1]
        mask = torch.full((length, length), -math.inf).triu(1)
        x = self.characters(text) + self.places(torch.arange(length))
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


def main() -> None:
    """Train, and let the network write a line."""
    torch.manual_seed(0)
    root = Path(__file__).resolve().parents[1]
    prose = "".join((root / name).read_text(encoding="utf-8") for name in TEXTS)
    letters = sorted(set(prose))
    encoded = torch.tensor([letters.index(letter) for letter in prose])
    model = Writer(len(letters))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    path = Path("char-transformer.tltrace")
    schedule = tl.schedule(wait=10, warmup=0, active=2, repeat=1)
    with tl.trace(path, capture="ops", schedule=schedule) as session:
        tl.watch(model)
        for step in range(STEPS):
            starts = torch.randint(len(encoded) - LENGTH - 1, (BATCH,))
            windows = encoded[starts[:, None] + torch.arange(LENGTH + 1)]
            logits = tl.tap(model(windows[:, :-1]), "logits")
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            session.step(loss=loss, grad_norm=norm)
            if step % 20 == 0:
                print(f"step {step}  loss {loss.item():.3f}", flush=True)
    text = encoded[:LENGTH].tolist()
    for _ in range(40):
        logits = model(torch.tensor([text[-LENGTH:]]))[0, -1]
        text.append(int(torch.multinomial(torch.softmax(logits, dim=0), 1)))
    print("it writes: " + repr("".join(letters[number] for number in text[LENGTH:])))


if __name__ == "__main__":
    main()
