"""``tracelens report``: a trace as one HTML page that needs nothing but itself.

The page holds no script and loads nothing; its policy forbids both, so that a text of the trace
could do no harm even if it were not escaped.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens import __version__
from tracelens.convert._output import new_file
from tracelens.diagnosis import diagnose
from tracelens.overview import overview
from tracelens.plots import findings
from tracelens.plots.charts import KEYS, charts_of
from tracelens.plots.drawing import figure, text
from tracelens.plots.profile import profile_html
from tracelens.plots.series import Chart, Curves, Ranking
from tracelens.texts import duration

if TYPE_CHECKING:
    import os

    from tracelens.storage.reader import TraceReader

MAX_BYTES = 2_000_000
"""A page is smaller than this."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_page(
    reader: TraceReader,
    out_path: str | os.PathLike[str],
    *,
    rank: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write the report of a trace.

    Args:
        reader: an open trace.
        out_path: the file.
        rank: draw this rank only.
        force: replace an existing file.

    Returns:
        ``path``, ``size_bytes``, ``verdict``, ``charts`` (drawn) and ``missing`` (key -> reason).

    Raises:
        ConfigError: the file exists, or the trace has no such rank.
        TraceLensError: the file cannot be written.
    """
    why = diagnose(reader)
    charts = charts_of(reader, KEYS, rank=rank)
    page = document(reader, why, charts, rank).encode("utf-8")
    with new_file(out_path, force=force) as temporary:
        temporary.write_bytes(page)
    return {
        "path": str(out_path),
        "size_bytes": len(page),
        "verdict": _verdict(why, charts),
        "charts": [chart.key for chart in charts if not chart.missing],
        "missing": {chart.key: chart.missing for chart in charts if chart.missing},
    }


def document(
    reader: TraceReader, why: dict[str, Any], charts: list[Chart], rank: int | None = None
) -> str:
    """Return the whole page.

    Args:
        reader: an open trace.
        why: its verdict (``diagnosis.diagnose``).
        charts: what to draw.
        rank: whose profile is told; the lowest rank's by default.
    """
    name = reader.path.name.removesuffix(".tltrace")
    seen = overview(reader, top=1)
    drawn = [chart for chart in charts if not chart.missing]
    absent = [chart for chart in charts if chart.missing]
    looked = _looked(charts)
    curves = [figure(chart) for chart in drawn if isinstance(chart.body, Curves)]
    rankings = [figure(chart) for chart in drawn if isinstance(chart.body, Ranking)]
    wide = [figure(chart) for chart in drawn if not isinstance(chart.body, Curves | Ranking)]
    parts = [
        f"<header><h1>{text(name)}</h1>{findings.verdict_line(why, looked=looked)}</header>",
        _section("First cause", findings.cause(why)),
        _section("Findings", findings.listed(_findings(why, seen["findings"]))),
        _section("Over the run", _beside(curves) + "".join(wide)),
        _section("Profile", profile_html(reader, rank)),
        _section("Time", _beside(rankings)),
        _section("Run", _facts(reader, seen)),
        _section("Notes", findings.listed(seen["notes"])),
        _section("Not in this trace", _absent(absent)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{text(name)} - tracelens</title><style>{style()}{_PAGE_STYLE}</style></head>"
        f'<body class="tl"><main>{"".join(parts)}</main>'
        f'<footer class="tl-soft">Made by tracelens {text(__version__)} from '
        f"<code>{text(reader.path)}</code>.</footer></body></html>\n"
    )


_PAGE_STYLE = """
html { background: #fff; }
@media (prefers-color-scheme: dark) { html { background: #0d1117; } }
body { margin: 0; padding: 1.2rem clamp(.8rem, 4vw, 2.5rem) 3rem; }
main, footer { max-width: 68rem; margin: 0 auto; }
footer { margin-top: 2.5rem; overflow-wrap: anywhere; }
"""


def style() -> str:
    """Return the style sheet of everything within the class ``tl``."""
    return (Path(__file__).with_name("style.css")).read_text(encoding="utf-8")


def _verdict(why: dict[str, Any], charts: list[Chart]) -> str:
    verdict = str(why["verdict"])
    return verdict if _looked(charts) or verdict != "clean" else "not judged"


def _looked(charts: list[Chart]) -> bool:
    """Tell whether any value was looked at while recording."""
    return not any(chart.key == "nonfinite" and chart.missing for chart in charts)


def _findings(why: dict[str, Any], stored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the findings of the verdict, and those stored that it says nothing of."""
    told = {str(each.get("message")) for each in stored}
    made = [each for each in why.get("findings") or () if str(each.get("message")) not in told]
    return [*made, *stored]


def _facts(reader: TraceReader, seen: dict[str, Any]) -> str:
    trace, steps, ops = seen["trace"], seen["steps"], seen["ops"]
    states = reader.shards()
    started = datetime.fromtimestamp(reader.manifest.epoch_unix_ns / 1e9, timezone.utc)
    frameworks = sorted({state.framework for state in states if state.framework})
    hosts = sorted({state.host for state in states if state.host})
    ranks = reader.ranks()
    count = f"{steps['count']:,}" if steps["count"] else "none marked"
    if steps["median_duration_ns"] is not None:
        count += f", median {duration(steps['median_duration_ns'])}"
    profiled, others = ops["profiled"], ops["recorded"] - ops["profiled"]
    recorded = f"{others:,} recorded" if others or not profiled else f"{profiled:,} profiled"
    if steps["n_ops"] and others:
        recorded += f" of {steps['n_ops']:,} that ran"
    facts = [
        ("started", f"{started:%Y-%m-%d %H:%M:%S} UTC"),
        ("framework", ", ".join(frameworks)),
        ("processes", f"{len(states)} of {len(ranks)} rank{'s' if len(ranks) != 1 else ''}"),
        ("host", ", ".join(hosts[:8]) + (" …" if len(hosts) > 8 else "")),
        ("steps", count),
        ("ops", recorded),
        ("state", ", ".join(trace["states"])),
        ("format", f"{trace['version']}, written by {reader.manifest.created_by}"),
    ]
    rows = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in facts if value)
    problems = [
        {"severity": "warning", "step": None, "rule": "damage", "message": line, "times": 1}
        for line in trace["problems"]
    ]
    health = findings.listed(problems) or (
        '<p><span class="tl-state tl-clean">✔ sound</span> '
        "no record was lost, no file is damaged</p>"
    )
    return f"<dl>{rows}</dl>{health}"


def _absent(charts: list[Chart]) -> str:
    rows = "".join(f"<dt>{text(c.title)}</dt><dd>{text(c.missing)}</dd>" for c in charts)
    return f"<dl>{rows}</dl>" if rows else ""


def _beside(figures: list[str]) -> str:
    """Return figures in two columns where there is room for them."""
    return f'<div class="tl-grid2">{"".join(figures)}</div>' if figures else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""
