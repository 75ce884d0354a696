"""Every collected recording is imported, or refused in one line, and every view of it answers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from profile_files import PROFILES
from tracelens.analysis.profile.data import load_profile
from tracelens.cli import main
from tracelens.cli._profile_text import render
from tracelens.cli.profile import _VIEWS, VIEWS, Profile
from tracelens.plots.page import MAX_BYTES
from tracelens.storage.reader import open_trace

REFUSED = {
    "corrupt_xplane", "et_kineto_pair/benchmark_simple_add_et.json.gz",
    "rtx2080ti_resnet/resnet_et.json.gz", "tf_gpu_input_bound_stats",
    "speedscope_edge_cases/trace-event/simple-with-samples.json",
}  # fmt: skip
"""What is no recording of time: execution traces, digests of profiles, one that was destroyed."""
TEXTS = (".csv", ".md")
SETS = (
    sorted(path.name for path in PROFILES.iterdir() if path.is_dir()) if PROFILES.is_dir() else []
)


@pytest.mark.skipif(not SETS, reason="needs the collected profiles")
@pytest.mark.parametrize("name", SETS)
def test_every_view_of_every_recording_answers(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, file in enumerate(sorted((PROFILES / name).rglob("*"))):
        if not file.is_file() or file.suffix in TEXTS:
            continue
        trace = tmp_path / f"{number}.tltrace"
        code = main(["import", str(file), "-o", str(trace)])
        told = capsys.readouterr().err
        known = {name, f"{name}/{file.relative_to(PROFILES / name)}"} & REFUSED
        assert code == (3 if known else 0), told
        assert all(line.isprintable() for line in told.splitlines())
        if code == 0:
            ask(trace)
            assert main(["summary", str(trace), "--json"]) == 0
            json.loads(capsys.readouterr().out)
    if code == 0:
        page = tmp_path / "a.html"
        assert main(["report", str(trace), "-o", str(page)]) == 0
        assert page.stat().st_size <= MAX_BYTES


def ask(trace: Path) -> None:
    """Ask for every view, which load the profile once here."""
    parser: argparse.ArgumentParser = Profile().parser()
    with open_trace(trace) as reader:
        data = load_profile(reader, None, None)
        for view in VIEWS:
            options = parser.parse_args([str(trace), view])
            found = _VIEWS[view](data, options)
            json.dumps(found, default=str)
            text = render(view, found, options)
            assert text and all(line.isprintable() for line in text.split("\n"))
