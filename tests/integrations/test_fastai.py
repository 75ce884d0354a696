"""fastai: a recorded ``Learner.fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import Recorded, line_of, place_of, same_weights
from torch import nn
from torch.utils.data import TensorDataset

from tracelens import session as sessions
from tracelens.errors import NonFiniteError

learner = pytest.importorskip("fastai.learner", exc_type=ImportError)
load = pytest.importorskip("fastai.data.load")
core = pytest.importorskip("fastai.data.core")
TraceCallback = pytest.importorskip("tracelens_torch.fastai").TraceCallback


class Net(nn.Module):
    def __init__(self, bad_call: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.bad_call, self.calls = bad_call, 0

    def forward(self, x: Any) -> Any:
        y = self.net(x)
        if self.training and self.calls == self.bad_call:
            y = torch.log(-y.abs())  # here
        self.calls += self.training
        return y


def fit(tmp_path: Path, *callbacks: Any, bad_call: int = -1) -> Any:
    torch.manual_seed(5)
    x = torch.rand(32, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    loaders = core.DataLoaders(load.DataLoader(data, bs=8), load.DataLoader(data, bs=16))
    made = learner.Learner(
        loaders, Net(bad_call), loss_func=nn.MSELoss(), cbs=list(callbacks), path=tmp_path
    )
    made.fit(2, 0.01)
    return made


def test_a_nan_in_the_module_names_its_line_and_step(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    fit(tmp_path, TraceCallback(path, quiet=True), bad_call=5)
    trace = Recorded(path)
    assert place_of(trace.errors[0]) == (Path(__file__).name, line_of(Net))
    assert trace.errors[0]["step"] == 5
    assert trace.failures == []


def test_steps_carry_the_loss_and_the_recorder_s_rows(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    made = fit(tmp_path, TraceCallback(path, quiet=True))
    trace = Recorded(path)
    assert trace.errors == [] and trace.failures == []
    assert trace.numbers() == list(range(8))
    assert None not in trace.scalar("loss") and None not in trace.scalar("lr")
    rows = [row[1] for row in made.recorder.values]
    valid = trace.scalar("valid_loss")
    assert (valid[3], valid[7]) == pytest.approx(tuple(rows), rel=1e-5)


def test_weights_are_the_same_with_and_without_the_callback(tmp_path: Path) -> None:
    plain = fit(tmp_path).model
    path = tmp_path / "run.tltrace"
    assert same_weights(plain, fit(tmp_path, TraceCallback(path, quiet=True)).model)


def test_raise_ends_fit_and_the_recording(tmp_path: Path) -> None:
    callback = TraceCallback(tmp_path / "run.tltrace", nonfinite="raise", quiet=True)
    with pytest.raises(NonFiniteError, match="log"):
        fit(tmp_path, callback, bad_call=5)
    assert sessions.current() is None
