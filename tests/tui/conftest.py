"""Traces for the tests of the terminal interface; skipped where Textual is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("textual")

for folder in (Path(__file__).parent, Path(__file__).parents[1]):
    sys.path.insert(0, str(folder))


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No colour settings and no keymap of whoever runs the tests, and a directory of our own."""
    for name in ("NO_COLOR", "TEXTUAL_THEME", "TEXTUAL_COLOR_SYSTEM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nan_trace(tmp_path: Path) -> Path:
    """A closed trace: a NaN made by op 19, `aten::exp` at train.py:13."""
    from tui_traces import nan_run

    return nan_run(tmp_path / "run.tltrace")


@pytest.fixture
def tensor_trace(tmp_path: Path) -> Path:
    """The same with stored values."""
    from tui_traces import nan_run

    return nan_run(tmp_path / "run.tltrace", values=True)


os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
