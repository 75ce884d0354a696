"""What was found, as HTML: the verdict with its first cause, the findings, what was not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracelens.analysis.names import display
from tracelens.analysis.report import one_sentence, render
from tracelens.plots.drawing import text

Json = Mapping[str, Any]

_GLYPHS = {"error": "✖", "warning": "▲", "info": "●"}
_MAX_LISTED = 50
_VERDICTS = {
    "non-finite": ("error", "✖ non-finite"),
    "masked": ("warning", "▲ masked"),
    "clean": ("clean", "✔ clean"),
}


def verdict_line(why: Json, *, looked: bool = True) -> str:
    """Return the verdict in a line.

    Args:
        why: the verdict (``diagnosis.diagnose``).
        looked: whether any value was looked at while recording.
    """
    if not looked and why.get("verdict") == "clean":
        return (
            '<p><span class="tl-state tl-info">● not judged</span> '
            "the trace holds times, and no value that could be judged</p>"
        )
    state, word = _VERDICTS.get(str(why.get("verdict")), ("info", str(why.get("verdict"))))
    sentence = (
        "no non-finite value reached anything that matters"
        if why.get("verdict") == "clean" and not why.get("first_cause")
        else one_sentence(why)
    )
    return f'<p><span class="tl-state tl-{state}">{text(word)}</span> {text(sentence)}</p>'


def cause(why: Json) -> str:
    """Return the first cause as a list of facts, and the whole report of ``why`` folded."""
    first = why.get("first_cause")
    if not isinstance(first, Mapping):
        return ""
    frame = first.get("source")
    facts = []
    if isinstance(frame, Mapping):
        facts.append(("where", f"{frame.get('file')}:{frame.get('line')}"))
        if frame.get("code"):
            facts.append(("line", f"{frame['code']}"))
    facts += [
        ("op", f"{display(str(first.get('op')))} ({first.get('phase')}, step {first.get('step')})"),
        ("module", first.get("module") or ""),
        ("why", first.get("why") or ""),
        ("fix", first.get("fix") or ""),
        ("not exact", "; ".join(map(str, why.get("doubts") or ()))),
    ]
    rows = "".join(
        f"<dt>{text(name)}</dt><dd>{_code(value) if name == 'line' else text(value)}</dd>"
        for name, value in facts
        if value
    )
    folded = "".join(f"{text(line)}\n" for line in render(why, width=84).splitlines())
    return (
        f"<dl>{rows}</dl><details><summary>The whole report</summary><pre>{folded}</pre></details>"
    )


def listed(rows: list[dict[str, Any]]) -> str:
    """Return findings and notes as a list, most severe first.

    Args:
        rows: dicts with ``step severity message times`` and ``rule`` or ``kind``.
    """
    order = ("error", "warning", "info")
    ranked = sorted(
        rows,
        key=lambda row: (
            order.index(row["severity"]) if row.get("severity") in order else len(order)
        ),
    )
    items = []
    for row in ranked[:_MAX_LISTED]:
        severity = row["severity"] if row.get("severity") in order else "info"
        times = f" ({row['times']} times)" if (row.get("times") or 0) > 1 else ""
        step = f"step {row['step']}: " if row.get("step") is not None and row["step"] >= 0 else ""
        name = row.get("rule") or row.get("kind") or ""
        items.append(
            f'<li><span class="tl-state tl-{severity}">{_GLYPHS[severity]} {severity}</span> '
            f"{text(step)}<code>{text(name)}</code> {text(row.get('message') or '')}{times}</li>"
        )
    if len(ranked) > _MAX_LISTED:
        items.append(f"<li>and {len(ranked) - _MAX_LISTED} more: tracelens summary lists them</li>")
    return f'<ul class="tl-findings">{"".join(items)}</ul>' if items else ""


def _code(value: Any) -> str:
    return f"<code>{text(value)}</code>"
