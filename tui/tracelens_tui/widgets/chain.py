"""The way of a bad value from its first cause to where it was seen, as a chain one can walk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from tracelens_tui.texts import safe
from tracelens_tui.widgets.listing import Listing
from tracelens_tui.widgets.virtual_table import Column, VirtualTable

Json = Mapping[str, Any]

_PHASES = {"forward": "fwd", "backward": "bwd", "optimizer": "opt", "data": "data"}


@dataclass(frozen=True, slots=True)
class Link:
    """One op of the chain, or a gap in it.

    Attributes:
        op_id: the op; ``None`` for a gap.
        sign: ``◆`` the first cause, ``│`` on the way, ``◎`` the sink, ``⋮`` a gap.
        name: the op's name.
        phase: its phase, short.
        where: its module and line.
        note: what happened there.
    """

    op_id: int | None
    sign: str
    name: str
    phase: str = ""
    where: str = ""
    note: str = ""


def links_of(finding: Json) -> list[Link]:
    """Return the chain of a finding, first cause first; the sink last."""
    path = [entry for entry in finding.get("path") or [] if isinstance(entry, Mapping)]
    first = finding.get("first_cause")
    if not path and isinstance(first, Mapping):
        path = [first]
    links = [_link(entry, first=at == 0) for at, entry in enumerate(path)]
    sink = finding.get("sink")
    if isinstance(sink, Mapping) and sink.get("sink") not in (None, "op"):
        op_id = sink.get("op_id")
        name = f"{sink.get('sink')} {sink.get('name') or ''}".strip()
        seen = op_id if isinstance(op_id, int) and op_id >= 0 else None
        links.append(Link(seen, "◎", safe(name), note="seen here"))
    return links


def _link(entry: Json, *, first: bool) -> Link:
    op_id = entry.get("op_id")
    if not isinstance(op_id, int):
        return Link(None, "⋮", safe(entry.get("note") or "…"))
    source = entry.get("source")
    line = (
        f"{PurePath(safe(source.get('file'))).name}:{source.get('line')}"
        if isinstance(source, Mapping)
        else ""
    )
    return Link(
        op_id,
        "◆" if first else "│",
        safe(entry.get("op")),
        _PHASES.get(str(entry.get("phase")), ""),
        "  ".join(part for part in (safe(entry.get("module") or ""), line) if part),
        safe(entry.get("note") or entry.get("kind") or ""),
    )


class ChainTable(VirtualTable):
    """The ops of the chain; the cursor of the app follows this one."""

    HELP = """How a non-finite value came from its first cause `◆` to where it was seen `◎`.
    Moving here moves through the trace."""

    def __init__(self) -> None:
        columns = (
            Column("", 1, lambda link: link.sign,
                   lambda link: "error" if link.sign in "◆◎" else "muted"),
            Column("first cause to sink", 18, lambda link: link.name, share=2),
            Column("phase", 5, lambda link: link.phase, rank=2),
            Column("value", 12, lambda link: link.note, lambda link: "error", share=2),
            Column("where", 12, lambda link: link.where, share=2, rank=1, keep_end=True),
        )  # fmt: skip
        super().__init__(columns, id="chain", empty="no chain")
        self.links: list[Link] = []

    def show_links(self, links: list[Link]) -> None:
        """Show a chain, the cursor on its first cause."""
        self.links = links
        self.cursor = 0
        self.show(Listing(links))


class WhyPane(Vertical):
    """The chain, and below it why it happened and what to do."""

    DEFAULT_CSS = """
    WhyPane #chain { height: 1fr; }
    WhyPane #advice { height: auto; max-height: 45%; padding: 0 1; color: $foreground;
        overflow-y: auto; scrollbar-size-vertical: 1; }
    """

    def compose(self) -> ComposeResult:
        """Lay out the two parts."""
        yield ChainTable()
        yield Static(id="advice")

    def show(self, finding: Json) -> None:
        """Show a finding."""
        chain = self.query_one(ChainTable)
        message = safe(finding.get("message") or finding.get("rule") or "")
        chain.border_title = Text(f"why: {message}")
        chain.show_links(links_of(finding))
        first = finding.get("first_cause")
        cause = first if isinstance(first, Mapping) else {}
        text = Text()
        for label, words in (
            ("why", cause.get("why")),
            ("fix", cause.get("fix") or finding.get("advice")),
            ("not sure", "; ".join(map(str, finding.get("doubts") or ()))),
        ):
            if words:
                text.append(f"{label} ", "bold")
                text.append(safe(words) + "\n")
        text.right_crop(1)
        self.query_one("#advice", Static).update(text)
