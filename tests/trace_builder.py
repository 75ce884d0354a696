"""Builds small traces record by record, so that a test says exactly what is in them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tracelens.events import OpFlag, Phase, RecordKind, Role
from tracelens.storage.format import RECORD_BYTES, RECORD_STRUCT, RING_HEADER_BYTES
from tracelens.storage.jsonlines import LineWriter
from tracelens.storage.manifest import (
    LIVE_DIR,
    SHARDS_DIR,
    ShardState,
    new_manifest,
    write_manifest,
    write_shard,
)
from tracelens.storage.ring import RingWriter
from tracelens.storage.sealer import Sealer
from tracelens.storage.strings import StringWriter

NAN = {"nan": 1}


class TraceBuilder:
    """One shard of a trace, live until ``close`` or ``kill``."""

    def __init__(
        self,
        path: Path,
        *,
        rank: int = 0,
        attempt: int = 0,
        world_size: int = 1,
        mode: str = "stream",
        ring_bytes: int = 1 << 20,
        clock_offset_ns: int = 0,
    ) -> None:
        self.path = path
        for folder in (SHARDS_DIR, LIVE_DIR):
            (path / folder).mkdir(parents=True, exist_ok=True)
        write_manifest(path, new_manifest(1_700_000_000 * 10**9, world_size, "test"))
        self.shard = f"r{rank:05d}-{attempt}"
        live = path / LIVE_DIR
        self.ring = RingWriter(live / f"{self.shard}.ring", ring_bytes, {"shard": self.shard})
        self.strings = StringWriter(live / f"{self.shard}.strings")
        self.events = LineWriter(live / f"{self.shard}.events")
        self.position = 0
        self.next_op_id = 0
        self.state = ShardState(
            self.shard,
            rank,
            attempt,
            socket.gethostname(),
            os.getpid(),
            "torch",
            mode,
            ring=f"{LIVE_DIR}/{self.shard}.ring",
            clock_offset_ns=clock_offset_ns,
        )
        write_shard(path, self.state)

    def record(self, *fields: float) -> None:
        """Write one raw record (fields in the order of RECORD, without seq)."""
        slot = self.position % self.ring.capacity
        offset = RING_HEADER_BYTES + RECORD_BYTES * slot
        RECORD_STRUCT.pack_into(self.ring.buffer, offset, *fields, self.position + 1)
        self.position += 1

    def hole(self) -> None:
        """Reserve a record and never write it, as a killed thread does."""
        self.position += 1

    def op(
        self,
        name: str = "aten::mm",
        *,
        step: int = 0,
        inputs: tuple[int, ...] = (),
        n_out: int = 1,
        flags: OpFlag = OpFlag.CHECKED,
        phase: Phase = Phase.FORWARD,
        module: str = "layers.0",
        line: int = 12,
        parent: int = -1,
        fwd: int = -1,
        start_ns: int | None = None,
        duration_ns: int = 900,
        tid: int = 77,
        stats: dict[str, Any] | None = None,
        value_id: int | None = None,
        op_id: int | None = None,
    ) -> int:
        """Record an op and, past the fourth input, its INPUTS records; return its id."""
        if op_id is None:
            op_id = self.next_op_id
        self.next_op_id = max(self.next_op_id, op_id + 1)
        site = self.strings.intern(
            "site",
            {
                "op": name,
                "module": module,
                "file": "train.py",
                "line": line,
                "function": "step",
                "code": "y = a @ b",
            },
        )
        tensor = ["float32", [2, 3], "cpu"]
        layout = self.strings.intern(
            "layout", {"in": [tensor] * len(inputs), "out": [tensor] * n_out}
        )
        counts = {"nan": 0, "posinf": 0, "neginf": 0, **(stats or {})}
        if counts["nan"] or counts["posinf"] or counts["neginf"]:
            flags |= OpFlag.HIT
        ids = [*inputs, -1, -1, -1, -1]
        self.record(
            RecordKind.OP, phase, flags, tid, site, layout, op_id, step, parent, fwd,
            op_id * 1000 if start_ns is None else start_ns, duration_ns, *ids[:4],
            len(inputs), n_out, 2, 0, -1.0, 1.0, 0.5, 0.25, 2.0, 6,
            counts["nan"], counts["posinf"], counts["neginf"], 0,
            op_id * 16 if value_id is None else value_id,
        )  # fmt: skip
        for first in range(4, len(inputs), 4):
            ids = [*inputs[first : first + 4], -1, -1, -1]
            self.record(
                RecordKind.INPUTS, phase, 0, tid, site, 0, op_id, step, parent, fwd, 0, -1,
                *ids[:4], 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, -1, -1,
            )  # fmt: skip
        return op_id

    def stat(
        self,
        op_id: int,
        role: Role,
        slot: int,
        *,
        step: int = 0,
        value_id: int = -1,
        nan: int = 0,
        first_bad: tuple[int, ...] = (),
        flags: int = 0,
    ) -> None:
        """Record the statistics of one tensor of an op."""
        tensor = self.strings.intern("tensor", ["float32", [2, 3], "cpu"])
        bad = [*first_bad, -1, -1, -1, -1][:4]
        self.record(
            RecordKind.STAT, Phase.FORWARD, flags, 77, 0, tensor, op_id, step, -1, -1, 0, -1,
            *bad, role, slot, 2, 0, -2.0, 3.0, 0.5, 0.25, 4.0, 6, nan, 0, 0, 1, value_id,
        )  # fmt: skip

    def event(self, t: str, **fields: Any) -> None:
        """Append an event line."""
        self.events.append({"t": t, **fields})

    def step(self, number: int, loss: float = 0.5, n_ops: int = 0) -> None:
        """Append a step's event."""
        self.event(
            "step",
            step=number,
            start_ns=number * 100_000,
            duration_ns=90_000,
            n_ops=n_ops,
            hits=0,
            scalars={"loss": loss},
        )

    def seal(self) -> None:
        """Move what is committed into segments, and go on recording."""
        sealer = Sealer(self.path, self.shard)
        sealer.poll(now=True)
        sealer.close()

    def close(self) -> Path:
        """Seal everything."""
        Sealer(self.path, self.shard).finish("closed")
        return self.path

    def kill(self) -> Path:
        """Leave everything as a killed process does."""
        self.state.pid = dead_pid()
        write_shard(self.path, self.state)
        return self.path


def dead_pid() -> int:
    """Return the id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def training_run(path: Path, *, steps: int = 3, hit: bool = True, **options: Any) -> TraceBuilder:
    """Record steps of eight ops each; op 3 of the last step makes a NaN that reaches the loss.

    In each step: 0 linear, 1 relu, 2 a composite with children 3 (exp) and 4 (log), 5 mul of six
    values, 6 backward of 3, 7 the loss.
    """
    trace = TraceBuilder(path, **options)
    value = -1
    for step in range(steps):
        bad = hit and step == steps - 1
        counts = NAN if bad else None
        first = trace.next_op_id
        trace.op("aten::linear", step=step, inputs=(value, -1), line=10)
        trace.op("aten::relu", step=step, inputs=(first * 16,), line=11)
        trace.op("aten::outer", step=step, flags=OpFlag.COMPOSITE, line=12, op_id=first + 2)
        trace.op(
            "aten::exp",
            step=step,
            inputs=((first + 1) * 16,),
            parent=first + 2,
            line=13,
            stats=counts,
        )
        if bad:
            trace.stat(first + 3, Role.INPUT, 0, step=step, value_id=(first + 1) * 16)
            trace.stat(
                first + 3,
                Role.OUTPUT,
                0,
                step=step,
                value_id=(first + 3) * 16,
                nan=1,
                first_bad=(4,),
            )
        trace.op(
            "aten::log",
            step=step,
            inputs=((first + 3) * 16,),
            parent=first + 2,
            line=14,
            stats=counts,
        )
        several = tuple((first + n) * 16 for n in (0, 1, 3, 4, 0, 1))
        trace.op("aten::mul", step=step, inputs=several, line=15, stats=counts, n_out=2)
        trace.op(
            "ExpBackward0",
            step=step,
            inputs=((first + 3) * 16,),
            phase=Phase.BACKWARD,
            fwd=first + 3,
            line=13,
        )
        value = (first + 7) * 16
        trace.op("aten::mse_loss", step=step, inputs=((first + 5) * 16,), line=16, stats=counts)
        trace.step(step, loss=1.0 / (step + 1), n_ops=8)
        if bad:
            trace.event(
                "sink",
                sink="loss",
                name="loss",
                step=step,
                op_id=first + 7,
                value_id=value,
                dtype="float32",
                shape=[],
                t_ns=(first + 7) * 1000,
            )
    return trace
