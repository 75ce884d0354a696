"""``nonfinite="raise"`` reaches the program wherever the engine was when it saw the value."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tracelens as tl


def test_a_bad_loss_raises_also_if_the_engine_names_an_op_at_that_moment(tmp_path: Path) -> None:
    session = tl.trace(tmp_path / "run.tltrace", nonfinite="raise", capture="ops", quiet=True)
    with pytest.raises(tl.NonFiniteError, match="log is nan below 0"), session as recording:
        x = torch.ones(3, requires_grad=True)
        loss = torch.log(x - 5).sum()
        # The first op after the loss has a site and a layout to be named: C++ calls into Python.
        loss.backward()
        recording.step()
