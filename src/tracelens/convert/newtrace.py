"""Writes a trace of what another tool recorded: all importers go through here.

The trace is made beside its final place and moved there when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracelens.convert.bulktrace import fresh_trace
from tracelens.events import MAX_SLOT, NO_ID, SLOT_BITS, OpFlag, Phase, RecordKind, Role, Stats
from tracelens.storage.manifest import new_manifest, write_manifest
from tracelens.storage.rundir import CREATED_BY
from tracelens.storage.writer import ShardWriter

Json = dict[str, Any]
Explain = Callable[[ShardWriter, Json], Json]

_NO_NUMBERS = (0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, -1)
_NO_INPUTS = (NO_ID, NO_ID, NO_ID, NO_ID)
_MAX_FINDINGS = 16
_MAX_SINKS = 64


class NewTrace:
    """A trace while it is written.

    Args:
        writer: its only shard.
        explain: makes the finding of a sink, from what the shard holds by then.

    Attributes:
        writer: the shard.
        n_ops: ops written.
        findings: how many findings were written.
    """

    def __init__(self, writer: ShardWriter, explain: Explain | None) -> None:
        self.writer = writer
        self._explain = explain
        self.n_ops = 0
        self.findings = 0
        self._sinks = 0
        self._told: set[tuple[Any, ...]] = set()
        self._interned: dict[tuple[str, str], int] = {}

    def intern(self, kind: str, value: Any) -> int:
        """Return the id of an interned value."""
        key = kind, repr(value)
        number = self._interned.get(key)
        if number is None:
            if len(self._interned) >= 1 << 18:
                self._interned.clear()
            number = self._interned[key] = self.writer.intern(kind, value)
        return number

    def op(
        self,
        site: int,
        *,
        op_id: int | None = None,
        phase: Phase = Phase.FORWARD,
        flags: int = 0,
        step: int = 0,
        start_ns: int = 0,
        duration_ns: int = -1,
        parent_id: int = NO_ID,
        fwd_op_id: int = NO_ID,
        tid: int = 0,
        layout: int = 0,
        inputs: Sequence[int] = (),
        n_outputs: int = 1,
        first_value: int | None = None,
        stats: Stats | None = None,
    ) -> int:
        """Write an op and return its id.

        Args:
            site: interned site.
            op_id: its id, if it was reserved before.
            phase: part of the step.
            flags: ``OpFlag`` bits.
            step: its step.
            start_ns: since the trace's epoch.
            duration_ns: -1 if unknown.
            parent_id: the op that called it.
            fwd_op_id: the forward op of a backward op.
            tid: thread.
            layout: interned layout, 0 if unknown.
            inputs: value ids.
            n_outputs: how many outputs it has.
            first_value: value id of output 0, if it is another op's value (a view).
            stats: statistics of output 0.
        """
        writer = self.writer
        if op_id is None:
            op_id = writer.reserve_op_id()
        if first_value is None:
            first_value = op_id << SLOT_BITS if n_outputs else NO_ID
        writer.write(
            writer.reserve(), RecordKind.OP, phase, flags, tid, site, layout, op_id, step,
            parent_id, fwd_op_id, start_ns, duration_ns, *_four(inputs, 0),
            min(len(inputs), 255), min(n_outputs, 255), _level(stats), 0, *_numbers(stats),
            first_value,
        )  # fmt: skip
        for at in range(4, len(inputs), 4):
            writer.write(
                writer.reserve(), RecordKind.INPUTS, 0, 0, tid, 0, 0, op_id, step, NO_ID, NO_ID,
                start_ns, -1, *_four(inputs, at), min(at, 255), 0, 0, 0, *_NO_NUMBERS, NO_ID,
            )  # fmt: skip
        self.n_ops += 1
        return op_id

    def stat(
        self,
        op_id: int,
        role: Role,
        slot: int,
        value_id: int,
        stats: Stats,
        *,
        step: int = 0,
        tensor: int = 0,
        flags: int = 0,
        first_bad: Sequence[int] = (),
    ) -> None:
        """Write the statistics of one tensor of an op."""
        writer = self.writer
        writer.write(
            writer.reserve(), RecordKind.STAT, 0, flags, 0, 0, tensor, op_id, step, NO_ID, NO_ID,
            0, -1, *_four(first_bad, 0), role, min(slot, 255), _level(stats, alone=True), 0,
            *_numbers(stats), value_id,
        )  # fmt: skip

    def note(self, kind: str, message: str, severity: str = "info", step: int = 0) -> None:
        """Write a note."""
        self.writer.event("note", kind=kind, severity=severity, message=message, step=step)

    def sink(self, **fields: Any) -> None:
        """Write a bad value that reached a sink, and the finding that explains it.

        The same failure is told once; past some number only the sinks are written.
        """
        if self._sinks >= _MAX_SINKS:
            return
        self._sinks += 1
        self.writer.event("sink", **fields)
        if self._explain is None or self.findings >= _MAX_FINDINGS:
            return
        finding = self._explain(self.writer, fields)
        first = finding.get("first_cause") or {}
        place = first.get("source") or {}
        key = (
            fields.get("sink"),
            fields.get("name"),
            finding.get("rule"),
            first.get("op"),
            place.get("file"),
            place.get("line"),
        )
        if key not in self._told:
            self._told.add(key)
            self.findings += 1
            self.writer.event("finding", **finding)


def value_of(op_id: int, slot: int) -> int:
    """Return the id of the value an op wrote into one output."""
    return (op_id << SLOT_BITS) | min(slot, MAX_SLOT)


def site_keys(source: Any) -> Json:
    """Return the source keys of a site for a line, empty for none."""
    if source is None:
        return {}
    return {
        "file": source.file,
        "line": source.line,
        "function": source.function,
        "code": source.code,
    }


@contextmanager
def new_trace(
    out_path: Path,
    *,
    epoch_unix_ns: int,
    host: str,
    framework: str,
    force: bool,
    explain: Explain | None = None,
) -> Iterator[NewTrace]:
    """Yield a trace to be written, which appears at ``out_path`` when the block ends well.

    Args:
        out_path: where the trace is wanted.
        epoch_unix_ns: time 0 of the trace.
        host: where the program ran.
        framework: what it ran.
        force: replace a trace that is there.
        explain: makes the finding of a sink.

    Raises:
        ConfigError: there is something already.
        TraceLensError: it cannot be written.
    """
    with fresh_trace(out_path, force=force) as run_dir:
        write_manifest(run_dir, new_manifest(epoch_unix_ns, 1, CREATED_BY))
        writer = ShardWriter(
            run_dir, mode="stream", on_full="block", framework=framework, host=host
        )
        try:
            yield NewTrace(writer, explain)
            writer.close()
        finally:
            writer.close("failed")


def hit_flags(bad: bool | None) -> int:
    """Return the flags of an output that was looked at, or not."""
    if bad is None:
        return 0
    return int(OpFlag.CHECKED | OpFlag.HIT) if bad else int(OpFlag.CHECKED)


def _four(numbers: Sequence[int], at: int) -> tuple[int, ...]:
    four = tuple(numbers[at : at + 4])
    return four if len(four) == 4 else (*four, *_NO_INPUTS[len(four) :])


def _level(stats: Stats | None, *, alone: bool = False) -> int:
    """Return a record's ``stat_level``; a STAT record always has extremes."""
    if stats is None:
        return 0
    return 2 if stats.l2 is not None or (alone and stats.vmin is not None) else 1


def _numbers(stats: Stats | None) -> tuple[float, ...]:
    if stats is None:
        return _NO_NUMBERS
    unknown = float("nan")  # read back as not known
    return (
        unknown if stats.vmin is None else stats.vmin,
        unknown if stats.vmax is None else stats.vmax,
        unknown if stats.mean is None else stats.mean,
        unknown if stats.std is None else stats.std,
        unknown if stats.l2 is None else stats.l2,
        stats.numel,
        stats.nan,
        stats.posinf,
        stats.neginf,
        -1 if stats.zero is None else stats.zero,
    )


def described(dtype: str, shape: Sequence[int] | None, stats: Stats | None) -> Mapping[str, Any]:
    """Return the keys of a ``sink`` event for a tensor of which this much is known."""
    told: Json = {}
    if dtype:
        told["dtype"] = dtype
    if shape is not None:
        told["shape"] = list(shape)
    if stats is not None:
        told["stats"] = {
            "numel": stats.numel,
            "nan": stats.nan,
            "posinf": stats.posinf,
            "neginf": stats.neginf,
            **({"vmin": stats.vmin, "vmax": stats.vmax} if stats.vmin is not None else {}),
        }
    return told
