"""Fingerprints: cheap, exact, and without a trace in the program that is watched."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch

import tracelens as tl
from tracelens.errors import ConfigError
from tracelens.storage.reader import open_trace
from tracelens_torch.distributed import _checksum, _norm

DTYPES = ["float32", "float64", "bfloat16", "float16", "complex64", "complex128", "int64", "bool"]


@pytest.mark.parametrize("name", DTYPES)
def test_a_checksum_is_of_the_values_and_not_of_their_layout(name: str) -> None:
    values = (torch.arange(12).reshape(3, 4) % 7).to(getattr(torch, name))
    turned = values.t().contiguous().t()
    assert turned.stride() != values.stride()
    assert _checksum(values).item() == _checksum(turned).item()
    other = values.clone()
    other[1, 1] = 0
    assert _checksum(other).item() != _checksum(values).item()
    if name != "bool":
        assert _norm(values).item() == pytest.approx(float((values.abs() ** 2).sum()) ** 0.5)


def test_fingerprints_are_taken_every_so_many_steps(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    with tl.trace(tmp_path / "run", quiet=True) as session:
        tl.watch(net, "net", fingerprint_every=2)
        for number in range(5):
            net(torch.ones(1, 2)).sum().backward()
            if number == 2:
                with torch.no_grad():
                    net.bias += float("nan")
            session.step()
    with open_trace(tmp_path / "run") as reader:
        rows = reader.sql(
            "SELECT step, kind, name, l2 IS NULL FROM fingerprints WHERE step < 5 ORDER BY ALL"
        )
    assert [row for row in rows if row[1] == "parameter"] == [
        (step, "parameter", f"net.{name}", name == "bias" and step >= 2)
        for step in (0, 2, 4)
        for name in ("bias", "weight")
    ]
    assert {row[:3] for row in rows if row[1] == "gradient"} >= {(4, "gradient", "net.weight")}


def test_taking_them_changes_nothing_in_the_program(tmp_path: Path) -> None:
    def train(every: int) -> list[object]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        optimizer = torch.optim.Adam(net.parameters())
        with tl.trace(tmp_path / str(every), quiet=True) as session:
            tl.watch(net, fingerprint_every=every)
            for _ in range(4):
                optimizer.zero_grad()
                net(torch.randn(3, 4)).sum().backward()
                optimizer.step()
                session.step()
        state = [value.clone() for value in net.state_dict().values()]
        return [*(value.numpy().tobytes() for value in state), torch.get_rng_state().tolist()]

    assert train(0) == train(1)


@pytest.mark.parametrize("every", [-1, 1.5, "2"])
def test_a_distance_that_is_no_count_is_refused(every: object) -> None:
    with pytest.raises(ConfigError, match="fingerprint_every"):
        tl.watch(torch.nn.Linear(1, 1), fingerprint_every=every)  # type: ignore[arg-type]
