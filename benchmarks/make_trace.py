"""Write a large synthetic trace: a 24-layer transformer's training steps, straight to segments.

Each step has 9,890 ops (forward, backward, optimizer) that read what earlier ops wrote, with
modules, source lines, shapes and statistics; a third are views without statistics. In the last
step one op of layer 11 makes a NaN out of finite inputs, and everything downstream of it in that
step is NaN up to the loss, the gradients and the parameters, which are reported as sinks.

    python benchmarks/make_trace.py OUT.tltrace [--ops 10000000] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.events import OpFlag, Phase
from tracelens.storage.encode import Encoder
from tracelens.storage.eventlog import EventRows
from tracelens.storage.format import RECORD
from tracelens.storage.manifest import (
    SHARDS_DIR,
    ShardState,
    new_manifest,
    write_manifest,
    write_shard,
)
from tracelens.storage.ring import Records
from tracelens.storage.segments import SegmentStore
from tracelens.storage.summary import write_run_tables

OPS_PER_STEP = 9_890
LAYERS = 24
WIDTH = 1024
EPOCH_UNIX_NS = 1_700_000_000 * 10**9
SEGMENT_OPS = 128 * 1024
SHARD = "r00000-0"
CULPRIT_LAYER = 11
OUTSIDE, THIS_STEP, STEP_BEFORE = 0, 1, 2

# (op, how many earlier ops it reads, is a view, tensor width as a multiple of WIDTH)
_LAYER = [
    ("aten::native_layer_norm", 3, False, 1), ("aten::t", 1, True, 3),
    ("aten::addmm", 3, False, 3), ("aten::view", 1, True, 3), ("aten::split", 1, True, 1),
    ("aten::view", 1, True, 1), ("aten::transpose", 1, True, 1), ("aten::transpose", 1, True, 1),
    ("aten::bmm", 2, False, 1), ("aten::mul", 2, False, 1), ("aten::masked_fill", 2, False, 1),
    ("aten::_softmax", 1, False, 1), ("aten::native_dropout", 1, False, 1),
    ("aten::bmm", 2, False, 1), ("aten::transpose", 1, True, 1), ("aten::clone", 1, False, 1),
    ("aten::view", 1, True, 1), ("aten::t", 1, True, 1), ("aten::addmm", 3, False, 1),
    ("aten::add", 2, False, 1), ("aten::native_layer_norm", 3, False, 1),
    ("aten::t", 1, True, 4), ("aten::addmm", 3, False, 4), ("aten::pow", 1, False, 4),
    ("aten::mul", 2, False, 4), ("aten::log", 1, False, 4), ("aten::mul", 2, False, 4),
    ("aten::t", 1, True, 1), ("aten::addmm", 3, False, 1), ("aten::native_dropout", 1, False, 1),
    ("aten::add", 2, False, 1),
]  # fmt: skip
_OPTIMIZER = ["aten::mul_", "aten::lerp_", "aten::addcmul_", "aten::sqrt", "aten::add_",
              "aten::addcdiv_"]  # fmt: skip


class Model:
    """One step's ops as a template: what each is, and what it reads.

    Attributes:
        records: the step's records with ids relative to the step.
        reads: (op, 4) offsets of the ops read, by ``source`` in this step or the one before.
        source: (op, 4) ``OUTSIDE``, ``THIS_STEP`` or ``STEP_BEFORE``.
        strings: the interned sites and layouts.
        culprit: offset of the op that makes the NaN in the last step.
        loss: offset of the op whose output is the loss.
        written_by: offset of the op that wrote each op's output.
    """

    def __init__(self) -> None:
        self.strings: dict[int, tuple[str, Any]] = {}
        self._ids: dict[str, int] = {}
        self._rows: list[tuple[Any, ...]] = []
        self.culprit = self.loss = 0
        self._build()
        self.n_ops = len(self._rows)
        self.records = np.zeros(self.n_ops, dtype=RECORD)
        self.reads = np.zeros((self.n_ops, 4), dtype=np.int64)
        self.source = np.zeros((self.n_ops, 4), dtype=np.int8)
        self._fill()

    def _build(self) -> None:
        last = self._op("DataLoader", Phase.DATA, "", 10, [], 1)
        last = self._op("aten::embedding", Phase.FORWARD, "embed", 21, [(THIS_STEP, last)], 1)
        parameters = 0
        for layer in range(LAYERS):
            skip = last
            for index, (name, n_in, view, width) in enumerate(_LAYER):
                reads = [(THIS_STEP, last)]
                if n_in > 1:
                    reads.append((THIS_STEP, skip))
                if n_in > 2:
                    reads.append((STEP_BEFORE, -(parameters % 290) - 1))
                    parameters += 1
                part = "attn" if index < 19 else "mlp"
                module = f"layers.{layer}.{part}"
                last = self._op(name, Phase.FORWARD, module, 30 + index, reads, width, view)
                if name == "aten::log" and layer == CULPRIT_LAYER:
                    self.culprit = last
        self.loss = self._op(
            "aten::cross_entropy_loss", Phase.FORWARD, "", 12, [(THIS_STEP, last)], 0
        )
        forward = list(range(2, self.loss))
        optimizer_ops = 290 * len(_OPTIMIZER)
        while len(self._rows) < OPS_PER_STEP - optimizer_ops:
            of = forward[-1 - (len(self._rows) - self.loss) * len(forward) // 7500 % len(forward)]
            row = self._rows[of]
            name = row[0].replace("aten::", "aten::d_") if len(self._rows) % 3 else "aten::view"
            reads = [(THIS_STEP, len(self._rows) - 1), (THIS_STEP, of)]
            view = len(self._rows) % 3 == 0
            self._op(name, Phase.BACKWARD, row[2], row[3], reads, row[5], view, forward_op=of)
        backward_end = len(self._rows) - 1
        for parameter in range(290):
            before = (THIS_STEP, backward_end - parameter * 20)
            for name in _OPTIMIZER:
                reads = [before, (STEP_BEFORE, -(parameter + 1))]
                now = self._op(name, Phase.OPTIMIZER, "", 15, reads, 1)
                before = (THIS_STEP, now)

    def _op(
        self, name: str, phase: Phase, module: str, line: int, reads: list[tuple[int, int]],
        width: int, view: bool = False, forward_op: int = -1,
    ) -> int:  # fmt: skip
        self._rows.append((name, phase, module, line, reads, width, view, forward_op))
        return len(self._rows) - 1

    def _intern(self, kind: str, value: Any) -> int:
        key = f"{kind}{value}"
        if key not in self._ids:
            self._ids[key] = len(self._ids) + 1
            self.strings[self._ids[key]] = (kind, value)
        return self._ids[key]

    def _fill(self) -> None:
        r = self.records
        for at, (name, phase, module, line, reads, width, view, forward_op) in enumerate(
            self._rows
        ):
            shape = [8, 128, width * WIDTH] if width else []
            tensor = ["float32", shape, "cpu"]
            site = {"op": name, "module": module, "file": "train/model.py", "line": line}
            site |= {"function": "Block.forward", "code": f"x = self.part_{line}(x, skip)"}
            r[at]["site_id"] = self._intern("site", site)
            layout = {"in": [tensor] * len(reads), "out": [tensor]}
            r[at]["layout_id"] = self._intern("layout", layout)
            r[at]["phase"], r[at]["n_in"], r[at]["n_out"] = phase, len(reads), 1
            r[at]["flags"] = OpFlag.VIEW if view else OpFlag.CHECKED
            r[at]["stat_level"] = 0 if view else 2
            r[at]["numel"] = np.prod(shape, dtype=np.int64)
            r[at]["fwd_op_id"] = forward_op
            for slot, (source, offset) in enumerate(reads):
                self.source[at, slot] = source
                # A negative offset counts from the end: the parameters' last writers.
                last_writer = self.n_ops - 1 + (offset + 1) * len(_OPTIMIZER)
                self.reads[at, slot] = offset if source == THIS_STEP else last_writer
        r["parent_id"] = -1
        # A view writes nothing: what it returns was written by the op it views.
        self.written_by = np.arange(self.n_ops)
        for at in np.flatnonzero(r["stat_level"] == 0):
            self.written_by[at] = self.written_by[self.reads[at, 0]]

    def reached_from_culprit(self) -> NDArray[np.bool_]:
        """Return which ops of a step are NaN once the culprit is (its own output included)."""
        bad = np.zeros(self.n_ops, dtype=bool)
        bad[self.culprit] = True
        own = np.where(self.source == THIS_STEP, self.reads, -1)
        for at in range(self.culprit + 1, self.n_ops):
            bad[at] = any(bad[read] for read in own[at] if read >= 0)
        return bad


def step_records(model: Model, step: int, random: np.random.Generator, start_ns: int) -> Records:
    """Return one step's records: the template with its own ids, times and statistics."""
    r = model.records.copy()
    n, base = model.n_ops, step * model.n_ops
    ids = np.arange(base, base + n)
    r["op_id"] = ids
    r["step"] = step
    here = (model.reads + base) * 16
    before = (model.reads + base - n) * 16 if step else np.full_like(here, -1)
    r["in_ids"] = np.select([model.source == THIS_STEP, model.source == STEP_BEFORE],
                            [here, before], -1)  # fmt: skip
    value = (model.written_by + base) * 16
    r["value_id"] = value
    own = model.source == THIS_STEP
    r["in_ids"][own] = value[model.reads[own]]
    r["fwd_op_id"] = np.where(r["fwd_op_id"] >= 0, r["fwd_op_id"] + base, -1)
    duration = random.gamma(2.0, 6_000.0, n).astype(np.int64) + 900
    r["duration_ns"] = duration
    r["start_ns"] = start_ns + np.cumsum(duration + random.integers(300, 2_000, n)) - duration
    r["tid"] = np.where(r["phase"] == Phase.BACKWARD, 4243, 4242)
    noise = random.standard_normal((4, n))
    std = np.exp(noise[0] * 0.2)
    r["std"], r["mean"] = std, noise[1] * 0.01
    r["vmin"], r["vmax"] = -4 * std * (1 + 0.1 * noise[2] ** 2), 4 * std * (1 + 0.1 * noise[3] ** 2)
    r["l2"] = std * np.sqrt(r["numel"])
    return r


def poison(model: Model, r: Records) -> None:
    """Make the culprit's output NaN, and everything that it reaches."""
    bad = model.reached_from_culprit() & (r["stat_level"] > 0)
    r["nan"][bad] = np.maximum(r["numel"][bad] // 3, 1)
    r["nan"][model.culprit] = 37
    r["flags"][bad] |= np.uint16(OpFlag.HIT)


def write_trace(path: Path, n_ops: int, seed: int = 0) -> dict[str, int]:
    """Write the trace; return its steps, ops, and the culprit's and the loss's op ids."""
    path.mkdir(parents=True)
    (path / SHARDS_DIR).mkdir()
    write_manifest(path, replace(new_manifest(EPOCH_UNIX_NS, 1, "benchmarks/make_trace.py")))
    model = Model()
    state = ShardState(SHARD, 0, 0, socket.gethostname(), os.getpid(), "torch", "stream")
    encoder, store = Encoder(0, lambda: model.strings), SegmentStore(path, SHARD)
    events = EventRows(0)
    random = np.random.default_rng(seed)
    n_steps = max(1, round(n_ops / model.n_ops))
    pending: list[Records] = []
    start_ns = 0

    def flush() -> None:
        records = np.concatenate(pending)
        pending.clear()
        for name, table in encoder.tables(records).items():
            low, high = int(records["op_id"][0]), int(records["op_id"][-1])
            state.segments.append(store.write(name, table, low, high))
        state.records += len(records)

    for step in range(n_steps):
        r = step_records(model, step, random, start_ns)
        last = step == n_steps - 1
        if last:
            poison(model, r)
        end_ns = int(r["start_ns"][-1] + r["duration_ns"][-1])
        events.add(
            {
                "t": "step", "step": step, "start_ns": start_ns, "duration_ns": end_ns - start_ns,
                "n_ops": model.n_ops, "hits": int((r["nan"] > 0).sum()),
                "scalars": {"loss": "NaN" if last else 4.0 / (1 + 0.01 * step)},
            }
        )  # fmt: skip
        start_ns = end_ns + 50_000
        pending.append(r)
        if sum(map(len, pending)) >= SEGMENT_OPS:
            flush()
    if pending:
        flush()
    ids = {"culprit": (n_steps - 1) * model.n_ops + model.culprit,
           "loss": (n_steps - 1) * model.n_ops + model.loss}  # fmt: skip
    for event in story(n_steps - 1, ids, start_ns):
        events.add(event)
    tables = {**events.tables(), "sources": encoder.sources()}
    for name, table in tables.items():
        state.segments.append(store.write(name, table, 0, table.num_rows - 1))
    state.sealed, state.state = state.records, "closed"
    write_shard(path, state)
    write_run_tables(path)
    return {"steps": n_steps, "ops": state.records, **ids}


def story(step: int, ids: dict[str, int], t_ns: int) -> list[dict[str, Any]]:
    """Return the events of the NaN: the sink at the loss, and the finding that explains it."""
    stats = {"numel": 1, "nan": 1, "posinf": 0, "neginf": 0, "vmin": None, "vmax": None}
    sink = {
        "t": "sink", "sink": "loss", "name": "loss", "step": step, "op_id": ids["loss"],
        "value_id": ids["loss"] * 16, "dtype": "float32", "shape": [], "stats": stats,
        "first_bad": [0], "t_ns": t_ns,
    }  # fmt: skip
    source = {"file": "train/model.py", "line": 55, "function": "Block.forward",
              "code": "x = self.part_55(x, skip)"}  # fmt: skip
    # fmt: off
    cause = {"kind": "nan", "op": "aten::log", "op_id": ids["culprit"], "phase": "forward",
             "step": step, "rank": 0, "module": f"layers.{CULPRIT_LAYER}.mlp", "source": source,
             "inputs": [], "outputs": [], "why": "log of a negative number",
             "fix": "clamp its input to positive values", "exact": True}
    finding = {"t": "finding", "rule": "log-negative", "severity": "error", "step": step,
               "op_id": ids["culprit"], "source": source, "message": "aten::log made a NaN",
               "advice": "clamp its input", "first_cause": cause, "sink": sink, "path": []}
    # fmt: on
    return [sink, finding]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--ops", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    made = write_trace(options.out, options.ops, options.seed)
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{made} in {seconds:.1f} s, {size / 1e6:.1f} MB, {size / made['ops']:.1f} bytes an op")


if __name__ == "__main__":
    main()
