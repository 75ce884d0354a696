"""skorch: a recorded ``fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import Recorded, line_of, place_of, same_weights
from torch import nn

from tracelens import session as sessions
from tracelens.errors import NonFiniteError

skorch = pytest.importorskip("skorch")
TraceCallback = pytest.importorskip("tracelens_torch.skorch").TraceCallback


class Net(nn.Module):
    def __init__(self, bad_call: int = -1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.bad_call, self.calls = bad_call, 0

    def forward(self, x: Any) -> Any:
        y = self.net(x)
        if self.training and self.calls == self.bad_call:
            y = torch.log(-y.abs())  # here
        self.calls += self.training
        return y


def fit(*callbacks: Any, bad_call: int = -1, **made: Any) -> Any:
    torch.manual_seed(5)
    net = skorch.NeuralNetRegressor(
        Net,
        module__bad_call=bad_call,
        max_epochs=2,
        batch_size=8,
        train_split=skorch.dataset.ValidSplit(4),
        callbacks=list(callbacks),
        verbose=0,
        **made,
    )
    x = np.random.default_rng(0).random((32, 4), dtype=np.float32)
    return net.fit(x, x.sum(axis=1, keepdims=True))


def test_a_nan_in_the_module_names_its_line_and_step(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    fit(TraceCallback(path, quiet=True), bad_call=4)
    trace = Recorded(path)
    assert place_of(trace.errors[0]) == (Path(__file__).name, line_of(Net))
    assert trace.errors[0]["step"] == 4
    assert trace.failures == []


def test_the_history_is_the_scalars_of_the_steps(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    net = fit(TraceCallback(path, quiet=True))
    trace = Recorded(path)
    assert trace.errors == [] and trace.failures == []
    assert trace.numbers() == list(range(6))
    batches = [loss for epoch in net.history[:, "batches", :, "train_loss"] for loss in epoch]
    assert trace.scalar("loss") == pytest.approx([loss for loss in batches if loss is not None])
    valid = trace.scalar("valid_loss")
    assert (valid[2], valid[5]) == pytest.approx(tuple(net.history[:, "valid_loss"]))


def test_weights_are_the_same_with_and_without_the_callback(tmp_path: Path) -> None:
    plain = fit().module_
    assert same_weights(plain, fit(TraceCallback(tmp_path / "run.tltrace", quiet=True)).module_)


def test_raise_ends_fit_and_the_recording(tmp_path: Path) -> None:
    callback = TraceCallback(tmp_path / "run.tltrace", nonfinite="raise", quiet=True)
    with pytest.raises(NonFiniteError, match="log"):
        fit(callback, bad_call=4)
    assert sessions.current() is None


def test_partial_fit_goes_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "run.tltrace"
    net = fit(TraceCallback(path, quiet=True))
    x = np.random.default_rng(0).random((32, 4), dtype=np.float32)
    net.partial_fit(x, x.sum(axis=1, keepdims=True))
    assert Recorded(tmp_path / "run-2.tltrace").numbers() == list(range(6, 12))


def test_a_net_with_the_callback_can_be_cloned(tmp_path: Path) -> None:
    from sklearn.base import clone

    net = fit(TraceCallback(tmp_path / "run.tltrace", quiet=True))
    copy = clone(net).callbacks[0]
    assert copy.get_params() == {"path": tmp_path / "run.tltrace", "quiet": True}


def test_a_search_over_copies_of_a_net_leaves_a_trace_of_each_training(tmp_path: Path) -> None:
    search = pytest.importorskip("sklearn.model_selection").GridSearchCV
    net = skorch.NeuralNetRegressor(
        Net,
        max_epochs=1,
        verbose=0,
        callbacks=[TraceCallback(tmp_path / "run.tltrace", quiet=True)],
    )
    x = np.random.default_rng(0).random((32, 4), dtype=np.float32)
    search(net, {"lr": [0.01, 0.1]}, cv=2, scoring="r2").fit(x, x.sum(axis=1, keepdims=True))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "run-2.tltrace",
        "run-3.tltrace",
        "run-4.tltrace",
        "run-5.tltrace",
        "run.tltrace",
    ]
