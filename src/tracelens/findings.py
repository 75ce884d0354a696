"""The findings of one rank as places to go to, and the explanation of any op."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

from tracelens.analysis import cause, describe
from tracelens.analysis.names import display
from tracelens.analysis.verdict import is_finding
from tracelens.diagnosis import RankOps, diagnose
from tracelens.events import NO_ID, STRUCTURAL, Op, OpFlag

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

Json = dict[str, Any]

_SHOWN = ("first_cause", "sink", "path", "data", "loss", "hidden_by", "exact", "doubts")
_CONTEXT_STEPS = 4
"""Steps before an op whose losses and events an explanation may look at."""


class Findings:
    """The findings of one rank: those stored while recording, or else those of ``why``.

    Args:
        reader: the trace.
        rank: whose.
    """

    def __init__(self, reader: TraceReader, rank: int) -> None:
        self._reader = reader
        self._rank = rank
        self._all: list[Json] | None = None
        self._places: list[int] = []

    def forget(self) -> None:
        """Look again at the next question (the trace has grown)."""
        self._all = None

    def all(self) -> list[Json]:
        """Return the findings, in order."""
        if self._all is None:
            stored = self._reader.findings(self._rank)
            found = [e for e in stored if e.get("verdict") == STRUCTURAL or is_finding(e)]
            if all(each.get("verdict") == STRUCTURAL for each in found):
                # A killed run explains itself now; what no sink saw is told as masked.
                found += self._explained_now()
            self._all = found
            places = {place for each in found for place in places_of(each) if place >= 0}
            self._places = sorted(places)
        return self._all

    def op_ids(self) -> list[int]:
        """Return ids of the ops that findings name: first causes and where they were seen."""
        self.all()
        return self._places

    def after(self, op_id: int) -> int | None:
        """Return the next op that a finding names."""
        places = self.op_ids()
        at = bisect_right(places, op_id)
        return places[at] if at < len(places) else None

    def before(self, op_id: int) -> int | None:
        """Return the op before that a finding names."""
        places = self.op_ids()
        at = bisect_left(places, op_id)
        return places[at - 1] if at > 0 else None

    def at(self, op_id: int) -> list[Json]:
        """Return the findings that name an op."""
        return [each for each in self.all() if op_id in places_of(each)]

    def _explained_now(self) -> list[Json]:
        """Return the findings of ``why``; the first one whole, of the others what is shown."""
        told = diagnose(self._reader)
        found: list[Json] = told["findings"]
        if found:
            shown = {key: told.get(key) for key in _SHOWN}
            found = [{**found[0], "verdict": told["verdict"], **shown}, *found[1:]]
        return [each for each in found if (each.get("rank") or 0) == self._rank]

    def explain(self, op: Op) -> Json | None:
        """Return the finding of an op's non-finite values; ``None`` if it touched none.

        A stored finding that names the op tells more than one made now: where the value went. Else
        its outputs count before its inputs.
        """
        stored = next((each for each in self.at(op.op_id) if each.get("path")), None)
        if stored is not None:
            return stored
        tensors = [*op.outputs, *op.inputs]
        bad = next((t for t in tensors if t.stats is not None and t.stats.nonfinite), None)
        name = f"of {display(op.name)}"
        sink: Json = {"sink": "output", "name": name, "op_id": op.op_id, "step": op.step}
        if bad is not None and bad.stats is not None:
            sink["value_id"] = bad.value_id
            sink["shape"] = bad.shape
            sink["dtype"] = bad.dtype
            sink["first_bad"] = list(bad.first_bad)
            sink["stats"] = {
                "numel": bad.stats.numel,
                "nan": bad.stats.nan,
                "posinf": bad.stats.posinf,
                "neginf": bad.stats.neginf,
                "vmin": bad.stats.vmin,
                "vmax": bad.stats.vmax,
            }
        elif not op.flags & OpFlag.HIT:
            return None
        return cause.explain(RankOps(self._reader, self._rank), sink, context=self._context(op))

    def _context(self, op: Op) -> Json:
        reader, rank = self._reader, self._rank
        near = range(op.step - _CONTEXT_STEPS, op.step + 1)
        return {
            "steps": reader.steps(near[0], near[-1], rank=rank),
            "data": [e for e in reader.events("data", rank=rank) if e.get("step") in near],
            "notes": [e for e in reader.notes(rank) if e.get("step") in near],
        }


def places_of(finding: Json) -> list[int]:
    """Return the ids of the ops that a finding names: its first cause and its sink's."""
    places = []
    for part in ("first_cause", "sink"):
        told = finding.get(part)
        if isinstance(told, dict):
            places.append(describe.whole(told, "op_id", NO_ID))
    return places
