"""What `tracelens doctor` says of TensorFlow; a session chooses nothing for the program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from tracelens_tensorflow import doctor, requirements
from tracelens_tensorflow.backend import TensorFlowBackend


def test_doctor_tells_version_engine_and_keras() -> None:
    facts = TensorFlowBackend().describe()
    assert facts["version"] == tf.__version__
    assert facts["engine"] in ("native", "python")
    assert "on tensorflow" in facts["keras"]
    assert "not_observed" not in facts


def test_what_a_tensorflow_lacks_is_said_with_its_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_NEEDED", (("tensorflow", ("gone.away",), "no x"),))
    assert requirements.missing() == [("tensorflow.gone.away", "no x")]
    monkeypatch.setattr(doctor, "missing", requirements.missing)
    assert TensorFlowBackend().describe()["not_observed"] == ["tensorflow.gone.away: no x"]


def test_keras_on_jax_is_said_not_to_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    assert "KERAS_BACKEND=tensorflow or torch" in doctor.keras_backend()


def test_a_program_may_still_choose_devices_and_threads_in_a_session(tmp_path: Path) -> None:
    program = (
        "import tensorflow as tf, tracelens as tl\n"
        f"with tl.trace({str(tmp_path / 'run.tltrace')!r}, quiet=True):\n"
        "    tf.config.threading.set_intra_op_parallelism_threads(1)\n"
        "    cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "    two = [tf.config.LogicalDeviceConfiguration()] * 2\n"
        "    tf.config.set_logical_device_configuration(cpu, two)\n"
        "    print(len(tf.config.list_logical_devices('CPU')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "2"
