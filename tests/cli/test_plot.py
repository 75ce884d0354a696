"""``tracelens plot``: the charts of a trace as a picture."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from plots_traces import hostile, training, wide
from tracelens.cli import main

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return training(tmp_path_factory.mktemp("plot") / "run.tltrace", bad_step=3)


def test_a_picture_holds_what_the_trace_has_and_says_what_it_lacks(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = trace.with_suffix(".png")

    assert main(["plot", str(trace), "-o", str(picture)]) == 0

    told = capsys.readouterr()
    assert told.out.strip() == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "tracelens: no kernels: the trace holds no kernels" in told.err
    assert "no loss" not in told.err


def test_charts_are_chosen_by_name_and_their_words_stand_in_the_svg(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = trace.with_suffix(".svg")

    words = ["plot", str(trace), "--what", "loss,gradients,kernels", "-o", str(picture), "--json"]
    assert main(words) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["charts"] == ["loss", "gradients"]
    assert set(told["missing"]) == {"kernels"}
    ElementTree.parse(picture)
    text = picture.read_text()
    assert "Gradient flow" in text
    assert "Not in this trace" in text


def test_the_same_trace_gives_the_same_svg(trace: Path) -> None:
    pictures = [trace.with_name(f"{name}.svg") for name in "ab"]
    for picture in pictures:
        assert main(["plot", str(trace), "--what", "loss,nonfinite", "-o", str(picture)]) == 0

    assert pictures[0].read_bytes() == pictures[1].read_bytes()


@pytest.mark.parametrize("make", [hostile, wide])
def test_hostile_names_and_many_modules_are_drawn(make: object, tmp_path: Path) -> None:
    trace = make(tmp_path / "run.tltrace")  # type: ignore[operator]
    picture = tmp_path / "run.svg"

    assert main(["plot", str(trace), "-o", str(picture)]) == 0

    tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(picture).iter()}
    assert "script" not in tags


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--what", "losses"], "no chart 'losses': choose from loss, "),
        (["-o", "picture.bmp"], "picture.bmp: the name must end with .png, .svg, .pdf"),
        (["--what", "kernels,memory"], "nothing to draw: kernels: the trace holds no kernels"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    trace: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", str(trace), *words]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tracelens plot: {told}")


def test_without_matplotlib_a_line_says_how_to_get_it(trace: Path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from tracelens.cli import main\n"
        f"sys.exit(main(['plot', {str(trace)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip install 'tracelens-toolkit[plots]'" in line
