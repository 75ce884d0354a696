"""TensorBoard both ways, judged by TensorBoard itself."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest

import tracelens as tl
from plots_traces import HOSTILE, hostile, training
from tracelens.cli import main
from tracelens.convert.tensorboard_graph import node_names
from tracelens.convert.tensorboard_values import histogram
from tracelens.convert.tfrecord import records
from tracelens.storage.bulk import BulkShard

pytest.importorskip("tensorboard")
pytest.importorskip("torch")

Ask = Callable[[str], Any]

WAIT_S = 60


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training(tmp_path_factory.mktemp("tensorboard") / "run.tltrace", bad_step=4)


@pytest.fixture(scope="module")
def logdir(trace: Path) -> Path:
    made = trace.with_name("logs")
    assert main(["export", str(trace), "--format", "tensorboard", "-o", str(made)]) == 0
    return made


@pytest.fixture(scope="module")
def ask(logdir: Path) -> Iterator[Ask]:
    """Start TensorBoard and return a function that asks it for one of its answers."""
    command = [
        *(sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)),
        *("--host", "127.0.0.1", "--port", "0", "--load_fast=false"),
    ]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        try:
            assert server.stderr is not None
            found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stderr)
            url = next(match[0] for match in found if match)

            def answer(path: str) -> Any:
                with urlopen(f"{url}/data/plugin/{path}", timeout=30) as told:
                    body = told.read()
                    return (
                        json.loads(body)
                        if b"json" in told.headers["Content-Type"].encode()
                        else body
                    )

            until = time.monotonic() + WAIT_S
            while not answer("scalars/tags").get("run") and time.monotonic() < until:
                time.sleep(0.1)
            yield answer
        finally:
            server.terminate()


def test_tensorboard_reads_every_scalar_of_every_step(ask: Ask, trace: Path) -> None:
    told = ask("scalars/scalars?run=run&tag=loss")
    tags = set(ask("scalars/tags")["run"])

    with tl.load(trace) as loaded:
        expected = [float(step["scalars"]["loss"]) for step in loaded.steps]
    assert [step for _, step, _ in told] == list(range(len(expected)))
    assert np.allclose([float(value) for *_, value in told], expected, equal_nan=True)
    assert np.isnan(expected[-1])
    assert {"grad_norm", "tracelens/step_time_ms", "tracelens/nonfinite_ops"} <= tags


def test_tensorboard_reads_statistics_of_every_module(ask: Ask, trace: Path) -> None:
    tags = set(ask("scalars/tags")["run"])
    told = ask(f"scalars/scalars?run=run&tag={quote('activations/0/l2')}")
    bad = ask(f"scalars/scalars?run=run&tag={quote('gradients/0/nonfinite')}")

    kinds = {"min", "max", "mean", "std", "l2", "nonfinite"}
    assert {f"activations/3/{kind}" for kind in kinds} <= tags
    assert {f"gradients/3/{kind}" for kind in kinds} <= tags
    with tl.load(trace) as loaded:
        (norm,) = loaded.sql(
            "SELECT l2 FROM ops WHERE step = 0 AND module = '0' AND name = 'aten::addmm'"
        )
    assert told[0][2] == pytest.approx(norm[0], rel=1e-5)
    assert [value > 0 for *_, value in bad] == [False] * 4 + [True] * 2


def test_tensorboard_reads_histograms_of_stored_values(ask: Ask, trace: Path) -> None:
    told = ask(f"histograms/histograms?run=run&tag={quote('0/out')}")

    with tl.load(trace) as loaded:
        values = loaded.tensor("0/out", step=0)
    _, step, buckets = told[0]
    assert step == 0
    assert sum(count for *_, count in buckets) == pytest.approx(values.size)
    assert buckets[0][0] == pytest.approx(values.min())
    assert buckets[-1][1] == pytest.approx(values.max())


def test_tensorboard_draws_modules_and_ops_with_their_times(ask: Ask) -> None:
    info = ask("graphs/info")["run"]
    graph = ask("graphs/graph?run=run").decode()
    times = ask(f"graphs/run_metadata?run=run&tag={quote(next(iter(info['tags'])))}").decode()

    names = set(re.findall(r'^  name: "([^"]+)"', graph, re.MULTILINE))
    assert {"0/addmm", "3/addmm", "1/native_layer_norm", "gradients/3/mm"} <= names
    inputs = set(re.findall(r'^  input: "([^":]+)', graph, re.MULTILINE))
    assert inputs <= names
    assert info["run_graph"]
    assert '"0/addmm"' in times


def test_tensorboard_shows_the_first_cause_as_text(ask: Ask) -> None:
    (verdict,) = ask(f"text/text?run=run&tag={quote('tracelens/verdict')}")
    findings = ask(f"text/text?run=run&tag={quote('tracelens/findings')}")

    assert "torch.log(square - square) * 0" in verdict["text"]
    assert findings[0]["step"] == 4


def test_what_was_exported_comes_back(logdir: Path, trace: Path, tmp_path: Path) -> None:
    back = tmp_path / "back.tltrace"

    assert main(["import", str(logdir), "-o", str(back)]) == 0

    with tl.load(trace) as there, tl.load(back) as here:
        losses = [float(step["scalars"]["loss"]) for step in there.steps]
        returned = [float(step["scalars"]["loss"]) for step in here.steps]
        assert np.allclose(losses, returned, equal_nan=True)
        assert "run_graph" not in str(here.reader.notes())


def test_a_torn_file_is_imported_up_to_the_tear_and_told(
    logdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole,) = logdir.rglob("*tfevents*")
    torn = tmp_path / "events.out.tfevents.1.torn"
    torn.write_bytes(whole.read_bytes()[:2000])

    assert main(["import", str(torn), "-o", str(tmp_path / "t.tltrace"), "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["steps"] >= 1
    assert "ends within a record" in told["problems"][0]
    with tl.load(tmp_path / "t.tltrace") as loaded:
        assert any(note["kind"] == "drop" for note in loaded.reader.notes())


def test_a_file_without_a_sound_scalar_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "events.out.tfevents.1.noise"
    damaged.write_bytes(bytes(range(256)) * 8)

    assert main(["import", str(damaged), "-o", str(tmp_path / "t.tltrace")]) == 3

    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing to import" in line
    assert not (tmp_path / "t.tltrace").exists()


def test_events_of_any_form_with_sound_checksums_never_end_an_import(
    logdir: Path, tmp_path: Path
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    (whole,) = logdir.rglob("*tfevents*")
    kept = list(records(whole, lambda damage: None))[:40]
    chance = random.Random(0)
    for trial in range(20):
        file = tmp_path / f"events.out.tfevents.{trial}"
        with file.open("wb") as target:
            writer = RecordWriter(target)
            for record in kept:
                changed = bytearray(record)
                for _ in range(chance.choice([0, 1, 3])):
                    changed[chance.randrange(len(changed))] = chance.randrange(256)
                writer.write(bytes(changed))
        words = ["import", str(file), "-o", str(tmp_path / "t.tltrace"), "--force"]
        assert main(words) in (0, 3)


def test_scalars_of_torch_and_of_tensorflow_are_read(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "logs" / "train") as writer:
        for step in range(3):
            writer.add_scalar("loss", 1.0 / (step + 1), step)
    with SummaryWriter(tmp_path / "logs" / "validation") as writer:
        # The form of tf.summary.scalar: a tensor with its plugin's name.
        writer.add_scalar("loss", float("nan"), 2, new_style=True)
        writer.add_text("words", "no scalar", 0)

    assert main(["import", str(tmp_path / "logs"), "-o", str(tmp_path / "t.tltrace")]) == 0

    with tl.load(tmp_path / "t.tltrace") as loaded:
        scalars = [step["scalars"] for step in loaded.steps]
        notes = " ".join(note["message"] for note in loaded.reader.notes())
    assert scalars[0] == {"train/loss": 1.0}
    assert np.isnan(float(scalars[2]["validation/loss"]))
    assert "no scalar: words" in notes


def test_each_rank_is_a_run_and_steps_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "ranks.tltrace"
    for rank in range(2):
        with BulkShard(path, rank=rank, world_size=2, epoch_unix_ns=10**18) as shard:
            for step in range(5):
                shard.event("step", step=step, start_ns=step, scalars={"loss": rank + step})
    words = ["export", str(path), "--format", "tensorboard", "-o", str(tmp_path / "logs")]

    assert main([*words, "--steps", "1:3"]) == 0

    runs = sorted(file.parent.name for file in (tmp_path / "logs").rglob("*tfevents*"))
    assert runs == ["rank0", "rank1"]
    assert main(["import", str(tmp_path / "logs"), "-o", str(tmp_path / "t.tltrace")]) == 0
    with tl.load(tmp_path / "t.tltrace") as loaded:
        assert [step["step"] for step in loaded.steps] == [1, 2]
        assert loaded.steps[0]["scalars"]["ranks/rank1/loss"] == 2


def test_another_run_in_the_folder_is_left_alone(trace: Path, tmp_path: Path) -> None:
    other = tmp_path / "logs" / "other"
    other.mkdir(parents=True)
    (other / "file").write_text("mine")
    words = ["export", str(trace), "--format", "tensorboard", "-o", str(tmp_path / "logs")]

    assert main(words) == 0
    assert main(words) == 2
    assert main([*words, "--force"]) == 0

    assert (other / "file").read_text() == "mine"


def test_hostile_names_are_exported_as_names(tmp_path: Path) -> None:
    path = hostile(tmp_path / "run.tltrace")
    words = ["export", str(path), "--format", "tensorboard", "-o", str(tmp_path / "logs")]

    assert main(words) == 0

    assert all("<" not in name for name in node_names([(HOSTILE, HOSTILE, "forward")]))


def test_a_histogram_counts_the_finite_values() -> None:
    told = histogram(np.array([[1.0, np.nan], [np.inf, 3.0]], dtype=np.float32))

    assert told is not None
    assert (told["num"], told["min"], told["max"], told["sum"]) == (2.0, 1.0, 3.0, 4.0)
    assert sum(told["bucket"]) == 2
    assert histogram(np.full(3, np.nan)) is None
    assert histogram(np.zeros(3)) is not None


def test_without_tensorboard_a_line_says_how_to_get_it(trace: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from tracelens.cli import main\n"
        f"sys.exit(main(['export', {str(trace)!r}, '--format', 'tensorboard']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip install 'tracelens-toolkit[tensorboard]'" in line
