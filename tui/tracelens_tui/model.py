"""What the screens share: the open trace, the current op, and the questions asked about them.

Everything here belongs to the screen's thread; reading happens in two reader threads. ``pages``
answers what is on screen (rows, inputs and outputs), ``work`` what may take longer (commands,
searches, statistics of a step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracelens.events import MAX_SLOT, Op, Source, TensorRecord
from tracelens.storage.reader import TraceReader
from tracelens_tui import sources
from tracelens_tui.opening import Opening
from tracelens_tui.rows import PAGE_ROWS, OpRows
from tracelens_tui.widgets.tensors_pane import Port, ports_of, producer_id
from tracelens_tui.worker import ReaderThread

if TYPE_CHECKING:
    from tracelens.breakpoints import Breakpoint

Json = dict[str, Any]
Post = Callable[[Callable[[], None]], object]


@dataclass(slots=True)
class Story:
    """What the trace tells beside its ops; read after the first lines are on screen."""

    findings: list[Json] = field(default_factory=list)
    steps: list[Json] = field(default_factory=list)
    notes: list[Json] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    hits: int = 0
    is_read: bool = False


class TraceModel:
    """One open trace.

    Attributes:
        path: the trace.
        rank: whose ops are shown.
        rows: the rows of the op table.
        position: the current op's position among the rank's ops.
        op: the current op; ``None`` until it is read.
        last_id: id of the last op that the readers' snapshot holds (running traces only).
        generation: how often that snapshot was taken anew.
        breaks: breakpoints and watches.
        marks: bookmarks by op id.
        frame: the source line shown, if it is not the op's own.
    """

    def __init__(self, path: Path, pages: ReaderThread, opening: Opening) -> None:
        self.path = path
        self.rank = opening.rank
        self.ranks = opening.ranks
        self.total = opening.total
        self.state = opening.state
        self.last_id = opening.last_id
        self.generation = 0
        self.position = opening.position
        self.story = Story()
        self.following = False
        self.breaks: tuple[Breakpoint, ...] = ()
        self.marks: dict[int, str] = {}
        self.frame: Source | None = None
        self.pages = pages
        self.work = ReaderThread(str(path), "tracelens-work")
        self._opening = opening
        self.rows: OpRows | None = None
        first = opening.first
        offset = opening.position % PAGE_ROWS
        self.op: Op | None = first[offset] if offset < len(first) else None

    def start(self, post: Post, changed: Callable[[], None]) -> OpRows:
        """Make the rows; ``changed`` is called when some have arrived."""
        self.rows = OpRows(self.pages, self.rank, post, changed)
        page = self._opening.position // PAGE_ROWS
        self.rows.set_total(self.total, page=page, ops=self._opening.first)
        return self.rows

    def close(self) -> None:
        """End the reader threads."""
        self.pages.close()
        self.work.close()

    @property
    def bases(self) -> list[Path]:
        """Directories that relative source paths are looked for in."""
        return [Path.cwd(), self.path.parent, self.path.parent.parent]

    async def op_at(self, position: int) -> Op | None:
        """Read the op at a position among all ops."""

        def read(reader: TraceReader) -> Op | None:
            found = reader.ops_at(position, position + 1, rank=self.rank)
            return found[0] if found else None

        return await self.pages.answer(self.pages.submit(read, urgent=True))

    async def position_of(self, op_id: int) -> int | None:
        """Return the position of an op, ``None`` if it was not recorded."""

        def look(reader: TraceReader) -> int | None:
            known = reader.op(op_id, self.rank) is not None
            return reader.position(op_id, self.rank) if known else None

        return await self.pages.answer(self.pages.submit(look, urgent=True))

    async def ports(self, op: Op) -> list[Port]:
        """Read the other ends of an op's inputs and outputs."""
        return await self.pages.ask(partial(_linked_ports, op=op, rank=self.rank))

    async def parents(self, op: Op) -> list[Op]:
        """Read the composite ops around an op and, first, the forward op of a backward op."""

        def look(reader: TraceReader) -> list[Op]:
            forward = reader.op(op.fwd_op_id, self.rank) if op.fwd_op_id >= 0 else None
            return [*([forward] if forward else []), *reader.parents(op.op_id, self.rank)]

        return await self.pages.ask(look)

    async def annotations(self, file: str, step: int) -> sources.Annotations:
        """Sum up what the lines of a file did in a step."""
        return await self.work.ask(partial(sources.annotate, file=file, step=step, rank=self.rank))

    async def read_story(self) -> Story:
        """Read findings, steps and problems."""
        story = await self.work.ask(partial(_story, rank=self.rank))
        # Damage is found where it is read, and the two readers do not read the same.
        seen = await self.pages.ask(lambda reader: reader.health().lines())
        story.problems = list(dict.fromkeys([*story.problems, *seen]))
        self.story = story
        return story


def _linked_ports(reader: TraceReader, op: Op, rank: int) -> list[Port]:
    linked = []
    for port in ports_of(op)[:64]:
        other: Op | None = None
        more = 0
        tensor = port.tensor
        if port.is_input:
            producer = producer_id(tensor)
            other = reader.op(producer, rank) if producer is not None else None
            tensor = _measured_by(other, tensor)
        elif port.tensor.value_id >= 0:
            readers = reader.consumers(port.tensor.value_id, limit=9, rank=rank)
            later = [op_id for op_id in readers if op_id > op.op_id]
            other = reader.op(later[0], rank) if later else None
            more = max(0, len(later) - 1)
        linked.append(Port(tensor, port.slot, port.is_input, other, more))
    return linked


def _measured_by(producer: Op | None, tensor: TensorRecord) -> TensorRecord:
    """Return an input with the statistics that its producer's record holds, if it has none."""
    if producer is None or tensor.stats is not None or tensor.overwritten:
        return tensor
    slot = tensor.value_id & MAX_SLOT
    made = producer.outputs[slot] if slot < len(producer.outputs) else None
    if made is None or made.value_id != tensor.value_id:
        return tensor
    return replace(tensor, stats=made.stats, dtype=tensor.dtype or made.dtype)


def _story(reader: TraceReader, rank: int) -> Story:
    from tracelens.diagnosis import diagnose

    findings = [found for found in reader.findings() if isinstance(found, dict)]
    if not any(found.get("severity") == "error" for found in findings):
        why = diagnose(reader)
        if why["verdict"] != "clean" and why["findings"]:
            shown = {**why["findings"][0], **{k: v for k, v in why.items() if k != "findings"}}
            findings = [shown, *(f for f in findings if f.get("verdict") != "masked")]
    return Story(
        findings=sorted(findings, key=_worst_first),
        steps=reader.steps(rank=rank),
        notes=reader.notes(),
        problems=reader.health().lines(),
        hits=len(reader.hits(rank=rank)),
        is_read=True,
    )


_SEVERITIES = ("error", "warning", "info")


def _worst_first(finding: Json) -> tuple[int, int]:
    severity = finding.get("severity")
    order = _SEVERITIES.index(severity) if severity in _SEVERITIES else len(_SEVERITIES)
    step = finding.get("step")
    return order, step if isinstance(step, int) else 0


def cause_id(finding: Json) -> int | None:
    """Return the id of the op that a finding blames, ``None`` if it names none."""
    first = finding.get("first_cause")
    for holder in (first, finding, finding.get("sink")):
        op_id = holder.get("op_id") if isinstance(holder, dict) else None
        if isinstance(op_id, int) and op_id >= 0:
            return op_id
    return None
