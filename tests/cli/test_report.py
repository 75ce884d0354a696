"""``tracelens report``: one page that needs nothing but itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import tracelens as tl
from plots_traces import HOSTILE, hostile, training, wide
from tracelens.cli import main
from tracelens.plots.page import MAX_BYTES
from tracelens.storage.bulk import BulkShard

# What loads something, runs something, or leads away.
ACTIVE_TAGS = {"script", "img", "iframe", "object", "embed", "link", "form", "a", "base", "audio"}
LOADING = {"src", "href", "srcset", "data", "action", "xlink:href", "background"}


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def assert_inert(self) -> None:
        assert not ACTIVE_TAGS & set(self.tags)
        names = {name for name, _ in self.attributes}
        assert not LOADING & names
        assert not [name for name in names if name.startswith("on")]


@pytest.fixture(scope="module")
def bad_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    return training(tmp_path_factory.mktemp("report") / "run.tltrace", bad_step=3)


def report(trace: Path, *words: str) -> str:
    page = trace.with_suffix(".html")
    assert main(["report", str(trace), "-o", str(page), "--force", *words]) == 0
    return page.read_text(encoding="utf-8")


def test_the_page_names_the_first_cause_and_draws_the_training(
    bad_trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = report(bad_trace, "--json")

    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "non-finite"
    assert {"loss", "grad_norm", "step_time", "gradients", "nonfinite", "ops"} <= set(
        told["charts"]
    )
    assert set(told["missing"]) == {"scalars", "kernels", "memory"}
    page = Page(text)
    words = " ".join(page.texts)
    assert "torch.log(square - square) * 0" in words
    assert "the trace holds no kernels" in words
    assert text.count("<svg") >= 4
    # What is not finite is told by a sign, and by numbers.
    assert "×" in words
    assert "tl-nan" in text


def test_the_page_loads_nothing_and_runs_nothing(bad_trace: Path) -> None:
    text = report(bad_trace)

    page = Page(text)
    page.assert_inert()
    policy = next(value for _, value in page.attributes if value.startswith("default-src"))
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "url(" not in text
    assert "@import" not in text
    assert "http:" not in text
    assert "https:" not in text


def test_every_picture_has_a_text_and_every_chart_a_table(bad_trace: Path) -> None:
    text = report(bad_trace)

    page = Page(text)
    pictures = page.tags.count("svg")
    named = sum(name == "role" and value == "img" for name, value in page.attributes)
    hidden = sum(name == "aria-hidden" and value == "true" for name, value in page.attributes)
    assert named + hidden >= pictures
    assert page.tags.count("details") >= named
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_a_hostile_trace_is_shown_and_stays_text(tmp_path: Path) -> None:
    trace = hostile(tmp_path / "a<b>&c.tltrace")

    page = Page(report(trace))

    page.assert_inert()
    assert HOSTILE in "".join(page.texts)
    with tl.load(trace) as loaded:
        Page(loaded._repr_html_()).assert_inert()


@pytest.mark.parametrize(
    "finding",
    [
        {"first_cause": {"op": "log"}},
        {"first_cause": {"op": "log", "phase": 3, "why": [1], "step": "q", "inputs": 3}},
        {"first_cause": {"op": "log", "phase": "forward", "why": "w"}, "data": {"samples": 3}},
    ],
)
def test_a_finding_of_another_form_is_no_finding(
    finding: dict[str, object], tmp_path: Path
) -> None:
    trace = tmp_path / "odd.tltrace"
    with BulkShard(trace) as shard:
        shard.event("finding", rule=3, severity="error", step=0, **finding)
        shard.event("note", kind=[1], message={"a": 1})

    report(trace)

    assert main(["why", str(trace)]) == 0


def test_a_page_of_a_large_trace_is_bounded_and_keeps_what_matters(tmp_path: Path) -> None:
    trace = wide(tmp_path / "wide.tltrace")

    text = report(trace)

    assert len(text.encode()) < MAX_BYTES / 2
    page = Page(text)
    words = " ".join(page.texts)
    assert "60 of 150 modules" in words
    # One NaN among 300,000 ops, in the last module of the last step.
    assert "encoder.layers.149.attention.out" in words
    assert "not finite in step 1000" in words


def test_a_profile_is_told_with_the_use_of_its_device_and_is_not_called_clean(
    tmp_path: Path,
) -> None:
    trace = tmp_path / "profile.tltrace"
    with BulkShard(trace) as shard:
        shard.write(
            "kernels",
            {
                "kern_id": np.arange(2),
                "step": np.zeros(2),
                "kind": "kernel",
                "name": "gemm",
                "device": np.zeros(2),
                "stream": np.zeros(2),
                "start_ns": np.array([0, 750]),
                "duration_ns": np.array([250, 250]),
            },
        )

    words = " ".join(Page(report(trace)).texts)

    assert "not judged" in words
    assert "✔ clean" not in words
    assert "2 1.00 µs 50.0% 50.0%" in words
    assert "gemm" in words


def test_a_nan_of_any_rank_is_shown_and_one_rank_can_be_chosen(tmp_path: Path) -> None:
    trace = tmp_path / "ranks.tltrace"
    for rank in range(2):
        with BulkShard(trace, rank=rank, world_size=2) as shard:
            shard.write(
                "ops",
                {
                    "op_id": np.arange(3),
                    "step": np.arange(3),
                    "ord": np.zeros(3),
                    "name": "mm",
                    "module": "encoder",
                    "phase": "backward",
                    "start_ns": np.arange(3),
                    "numel": np.ones(3),
                    "nan_count": np.array([0, 0, rank]),
                    "inf_count": np.zeros(3),
                    "l2": np.ones(3),
                },
            )

    assert "NaN and Inf elements in the outputs of 1 module" in report(trace)
    assert "No op that was looked at had a NaN" in report(trace, "--rank", "0")


def test_an_existing_page_is_kept_unless_forced(
    bad_trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = bad_trace.with_name("kept.html")
    page.write_text("mine")

    assert main(["report", str(bad_trace), "-o", str(page)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert page.read_text() == "mine"


def test_a_rank_that_is_not_there_is_refused_in_one_line(
    bad_trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(bad_trace), "--rank", "7", "--force"]) == 2
    assert capsys.readouterr().err == "tracelens report: no rank 7 in the trace: it has 0\n"


def test_what_is_no_trace_is_unreadable(tmp_path: Path) -> None:
    assert main(["report", str(tmp_path)]) == 3


BROWSER = """
const {createRequire} = require('module'), {pathToFileURL} = require('url');
const need = createRequire(process.env.MODULES + '/x.js');
const load = async name => (await import(pathToFileURL(need.resolve(name)))).default;
(async () => {
  const chromium = await load('@sparticuz/chromium'), puppeteer = await load('puppeteer-core');
  const browser = await puppeteer.launch({
    executablePath: await chromium.executablePath(), args: [...chromium.args, '--no-sandbox'],
    headless: 'shell'});
  const page = await browser.newPage(), asked = [], told = [];
  page.on('request', request => asked.push(request.url()));
  page.on('console', message => told.push(message.text()));
  page.on('dialog', dialog => { told.push('dialog'); dialog.dismiss(); });
  await page.setViewport({width: 375, height: 800});
  await page.goto(pathToFileURL(process.argv[2]).href);
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  console.log(JSON.stringify({asked: asked.length, told, width}));
  await browser.close();
})();
"""


def test_a_browser_shows_the_page_at_the_width_of_a_phone(tmp_path: Path) -> None:
    modules = os.environ.get("NODE_MODULES", "")
    if not shutil.which("node") or not (Path(modules) / "puppeteer-core").is_dir():
        pytest.skip("needs node, and NODE_MODULES with puppeteer-core and @sparticuz/chromium")
    trace = hostile(tmp_path / "run.tltrace")
    report(trace)
    script = tmp_path / "look.cjs"
    script.write_text(BROWSER)

    done = subprocess.run(
        ["node", script, trace.with_suffix(".html")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "MODULES": modules},
    )

    assert json.loads(done.stdout) == {"asked": 1, "told": [], "width": 375}
