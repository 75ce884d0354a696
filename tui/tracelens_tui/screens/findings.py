"""What a person should look at, the worst first: evidence, advice, source, one key to the op."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from tracelens.analysis import report
from tracelens_tui.screens.base import TraceScreen
from tracelens_tui.texts import safe
from tracelens_tui.widgets.listing import Listing
from tracelens_tui.widgets.virtual_table import Column, VirtualTable

Json = Mapping[str, Any]

_SIGNS = {"error": "✖", "warning": "▲", "info": "·"}
_TONES = {"error": "error", "warning": "warning", "info": "muted"}


class FindingsTable(VirtualTable):
    """Findings and notes, by severity, then step."""

    HELP = """What the run left to look at: findings `✖`, warnings `▲`, remarks `·`.
    **Enter** goes to the op that a finding blames and shows how the value came from there."""

    def __init__(self) -> None:
        columns = (
            Column("", 1, lambda f: _SIGNS.get(str(f.get("severity")), "·"),
                   lambda f: _TONES.get(str(f.get("severity")), "muted")),
            Column("step", 5, lambda f: _step(f), right=True),
            Column("what", 14, lambda f: safe(f.get("rule") or f.get("kind") or ""), share=1),
            Column("message", 24, lambda f: safe(f.get("message") or ""), share=5),
            Column("times", 5, lambda f: _times(f), right=True, rank=3),
            Column("source", 14, lambda f: _place(f), lambda f: "accent", share=1, rank=1,
                   keep_end=True),
        )  # fmt: skip
        super().__init__(columns, id="findings", empty="reading …")


class FindingsScreen(TraceScreen):
    """The table, and the whole report of the finding under the cursor."""

    NAME: ClassVar[str] = "findings"

    def body(self) -> Iterable[Widget]:
        """Lay out the table above the report."""
        yield FindingsTable()
        with VerticalScroll(id="evidence", classes="pane") as pane:
            pane.border_title = "evidence"
            yield Static(id="evidence-text")

    def on_mount(self) -> None:
        """Show what is known so far."""
        super().on_mount()
        self.query_one(FindingsTable).focus()
        self.news()

    def news(self) -> None:
        """The findings were read, or there are more."""
        story = self.model.story
        if not story.is_read:
            return
        self.refresh_status()
        problems = [
            {"severity": "warning", "kind": "trace", "message": line} for line in story.problems
        ]
        rows = [*story.findings, *problems, *story.notes]
        rows.sort(key=lambda f: ("error", "warning", "info").index(_severity(f)))
        table = self.query_one(FindingsTable)
        table.show(Listing(rows), empty="no finding: every value that matters is finite")
        self._show_evidence()

    @on(VirtualTable.Moved, "#findings")
    def _show_evidence(self) -> None:
        finding = self.query_one(FindingsTable).current()
        self.query_one("#evidence-text", Static).update(
            evidence(finding, self.size.width - 3) if finding else ""
        )

    @on(VirtualTable.Chosen, "#findings")
    async def _go(self) -> None:
        finding = self.query_one(FindingsTable).current()
        if finding is None:
            return
        if finding.get("first_cause") or finding.get("path"):
            await self.tracelens.show_finding(finding)
        else:
            self.tracelens.say("this remark names no op")


def evidence(finding: Json, width: int) -> Text:
    """Return everything that a finding says, as text."""
    if finding.get("first_cause"):
        try:
            text = report.render(finding, width=max(width, 40))
        except (KeyError, TypeError, ValueError, AttributeError):
            # A trace may hold anything under the name of a finding.
            text = safe(finding.get("message") or "")
        return Text("\n".join(safe(line) for line in text.splitlines()))
    lines = [safe(finding.get("message") or "")]
    if finding.get("advice"):
        lines.append(f"advice: {safe(finding['advice'])}")
    return Text("\n".join(lines))


def _severity(finding: Json) -> str:
    severity = finding.get("severity")
    return severity if severity in _SIGNS else "info"


def _step(finding: Json) -> str:
    step = finding.get("step")
    return str(step) if isinstance(step, int) and step >= 0 else ""


def _times(finding: Json) -> str:
    times = finding.get("count")
    return f"×{times}" if isinstance(times, int) and times > 1 else ""


def _place(finding: Json) -> str:
    source = finding.get("source")
    if not isinstance(source, Mapping):
        return ""
    return f"{PurePath(safe(source.get('file') or '')).name}:{source.get('line')}"
