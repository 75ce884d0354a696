"""``tracelens_torch.TraceCallback`` fits whichever library the program has imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tracelens_torch

PROGRAM = """
import sys
import tracelens_torch
from tracelens.errors import ConfigError
try:
    tracelens_torch.TraceCallback("run.tltrace")
except ConfigError as error:
    print(error)
print({"lightning", "pytorch_lightning", "transformers", "skorch", "fastai"} & set(sys.modules))
"""


def test_without_a_library_it_says_what_to_import_and_imports_none() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, imported = done.stdout.splitlines()
    assert refused.startswith("TraceCallback: import lightning")
    assert imported == "set()"


def test_with_several_libraries_it_fits_them_all() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    transformers = pytest.importorskip("transformers.trainer_callback")
    callback = tracelens_torch.TraceCallback("run.tltrace")
    assert isinstance(callback, tracelens_torch.TraceCallback)
    assert isinstance(callback, lightning.Callback)
    assert isinstance(callback, transformers.TrainerCallback)


def test_a_module_for_one_library_imports_that_one() -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from tracelens_torch.lightning import TraceCallback

    assert issubclass(TraceCallback, tracelens_torch.TraceCallback)
    assert issubclass(TraceCallback, lightning.Callback)
