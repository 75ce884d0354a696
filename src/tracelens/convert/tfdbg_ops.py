"""Turns the executions and traces of a tfdbg v2 dump into ops with inputs, steps and sinks."""

from __future__ import annotations

from collections.abc import Callable

from tracelens.convert import tfdbg_program as program
from tracelens.convert.newtrace import NewTrace, described, hit_flags, site_keys, value_of
from tracelens.convert.tfdbg_events import Execution, Trace
from tracelens.convert.tfdbg_health import UNKNOWN, Health, health, layout_entry
from tracelens.convert.tfdbg_made import MadeOp, MadeOps
from tracelens.convert.tfdbg_program import GraphFacts, Graphs, Sources, short_device
from tracelens.convert.tfdbg_values import NOTHING, Handle, Known, Values
from tracelens.events import NO_ID, SLOT_BITS, OpFlag, Role, TensorFlag

TENSOR_BUDGET_BYTES = 1 << 30
"""Values of a FULL_TENSOR dump that are kept."""

_MAX_INPUTS = 64
_MAX_LAYOUTS = 1 << 16


class DumpOps:
    """Writes the ops of a dump, in the order of time.

    Args:
        trace: where they are written.
        sources: the program's lines.
        graphs: its graphs.
        devices: device names by number.
        epoch_unix_ns: time 0 of the trace.

    Attributes:
        n_steps: steps so far: a call of a function from Python ends one.
    """

    def __init__(
        self,
        trace: NewTrace,
        sources: Sources,
        graphs: Graphs,
        devices: dict[int, str],
        epoch_unix_ns: int,
    ) -> None:
        self._trace = trace
        self._sources = sources
        self._graphs = graphs
        self._devices = devices
        self._epoch_s = epoch_unix_ns / 1e9
        self._values = Values()
        self._op_ids: dict[tuple[str, str], tuple[int, int]] = {}
        self._made = MadeOps(trace, sources)
        self._layouts: dict[tuple[object, ...], int] = {}
        self._active: dict[str, GraphFacts] = {}
        self._kept_bytes = 0
        self._step_ops = self._step_hits = 0
        self._step_start_ns: int | None = None
        self._last_ns = 0
        self._has_calls = False
        self.n_steps = 0

    def expect(self, call_of: Callable[[str], Execution | None]) -> None:
        """Tell how to find the call that the traces to come belong to."""
        self._values.call_of = call_of

    def execution(self, done: Execution) -> None:
        """Take in an eager op, or a function's call after what happened in it.

        Raises:
            WireError: a tensor of it is damaged.
        """
        found = [health(done.mode, data) for data in done.tensors]
        found += [UNKNOWN] * (len(done.outputs) - len(found))
        if done.graph_id:
            self._called(done, found)
        else:
            self._eager_op(done, found)

    def trace(self, seen: Trace) -> None:
        """Take in one output of a graph's op.

        Raises:
            WireError: its tensor is damaged.
        """
        found = health(seen.mode, seen.tensor)
        graph = self._graphs[seen.graph_id]
        name = f"{seen.op_name}:{seen.slot}"
        if self._repeats(graph, name):
            self._end_step()
        now_ns = self._time(seen.wall_time)
        self._active[seen.graph_id] = graph
        device = short_device(seen.device)
        op_id = self._op_id_of(seen, graph, name)
        if op_id is None:
            op_id = self._write_graph_op(seen, graph, found, device, now_ns)
        value_id = value_of(op_id, seen.slot)
        self._values.put(graph, name, Known(value_id, found, self.n_steps, seen.op_name))
        if found.stats is not None and (seen.slot or found.bad):
            self._stat(op_id, Role.OUTPUT, seen.slot, value_id, found, device)
        self._keep(found, value_id, name, op_id)

    def finish(self) -> None:
        """The dump is at its end."""
        if self._step_ops:
            self._updates()
            self._end_step()
        for known in self._values.ends.values():
            self._sink("read", f"an output of {known.op_name}", known)

    # Graphs

    def _op_id_of(self, seen: Trace, graph: GraphFacts, name: str) -> int | None:
        """Return the op that an output belongs to, if another output of its run was seen."""
        known = self._op_ids.get((seen.graph_id, seen.op_name))
        if known is None or known[1] != self.n_steps:
            return None
        same = self._values.traced(graph, name)
        again = same is not None and same.value_id >> SLOT_BITS == known[0]
        return None if again else known[0]

    def _repeats(self, graph: GraphFacts, name: str) -> bool:
        """Tell whether a step began, in a dump that tells of no calls."""
        if self._has_calls or not graph.is_function:
            return False
        known = self._values.traced(graph, name)
        if known is None or known.step != self.n_steps:
            return False
        self._has_calls = self._values.call_of(graph.graph_id) is not None
        return not self._has_calls

    def _write_graph_op(
        self, seen: Trace, graph: GraphFacts, found: Health, device: str, now_ns: int
    ) -> int:
        made = self._made.of(graph, seen.op_name)
        known = self._inputs_of(graph, made)
        n_outputs = max(made.op.n_outputs if made.op is not None else 1, seen.slot + 1)
        forward = self._op_ids.get(made.forward) if made.forward is not None else None
        op_id = self._trace.op(
            made.site,
            phase=made.phase,
            flags=made.flags | hit_flags(found.bad),
            step=self.n_steps,
            start_ns=now_ns,
            fwd_op_id=forward[0] if forward is not None else NO_ID,
            layout=self._layout(known, found, n_outputs, seen.slot, device),
            inputs=[each.value_id for each in known],
            n_outputs=n_outputs,
            stats=found.stats if not seen.slot else None,
        )
        self._op_ids[seen.graph_id, seen.op_name] = op_id, self.n_steps
        self._count(bool(found.bad))
        if found.bad:
            self._inputs_of_hit(op_id, known, found if made.is_a("ReadVariableOp") else None)
        return op_id

    def _inputs_of(self, graph: GraphFacts, made: MadeOp) -> list[Known]:
        values = self._values
        if made.is_a("ReadVariableOp") and made.inputs:
            return [values.variable(values.handle(graph, made.inputs[0]))]
        if made.op is not None and made.is_a("Placeholder"):
            return [values.handed_in(graph, made.op.name)]
        return [values.find(graph, name) for name in made.inputs]

    def _updates(self) -> None:
        """Write this step's updates of variables by graphs: they put out nothing."""
        for graph in self._active.values():
            for op in graph.writes:
                made = self._made.of(graph, op.name)
                inputs = made.inputs
                known = [self._values.find(graph, name) for name in inputs[1:]]
                if not any(each.step == self.n_steps for each in known):
                    continue
                handle = self._values.handle(graph, inputs[0])
                before = self._values.variable(handle)
                op_id = self._trace.op(
                    made.site,
                    phase=made.phase,
                    flags=int(OpFlag.INPLACE),
                    step=self.n_steps,
                    start_ns=self._last_ns,
                    inputs=[before.value_id, *(each.value_id for each in known)],
                )
                self._count(False)
                bad = next((each for each in known if each.bad), known[-1])
                self._write(handle, op_id, bad, program.split(inputs[0])[0])

    # Eager

    def _eager_op(self, done: Execution, found: list[Health]) -> None:
        now_ns = self._time(done.wall_time)
        handle: Handle = done.inputs[0] if done.inputs else -1
        known = [self._values.eager(number) for number in done.inputs]
        reads, writes = done.op_type == "ReadVariableOp", program.is_write(done.op_type)
        if reads or writes:
            known[:1] = [self._values.variable(handle)]
        n_outputs = max(len(done.outputs), int(writes))
        op_id = self._write_execution(
            done, found, known, int(OpFlag.INPLACE) if writes else 0, now_ns, n_outputs=n_outputs
        )
        if any(each.bad for each in found):
            self._inputs_of_hit(op_id, known, found[0] if reads else None)
        self._values.read(done.inputs)
        for slot, (number, each) in enumerate(zip(done.outputs, found, strict=False)):
            if done.op_type == "VarHandleOp":
                each = Health(dtype="resource")
            made = Known(value_of(op_id, slot), each, self.n_steps, done.op_type)
            self._values.put_eager(number, made, may_end=True)
            self._keep(each, made.value_id, f"{done.op_type}:{slot}", op_id)
        if writes:
            self._write(handle, op_id, known[-1] if len(known) > 1 else NOTHING, done.op_type)

    def _called(self, done: Execution, found: list[Health]) -> None:
        """A function returned: its outputs are what its graph's results held."""
        self._has_calls = True
        now_ns = self._time(done.wall_time)
        graph = self._graphs[done.graph_id]
        self._values.called(graph, done)
        self._updates()
        results = graph.results()
        inner = [
            self._values.find(graph, results[slot]) if slot < len(results) else NOTHING
            for slot in range(len(done.outputs))
        ]
        known = [self._values.eager(number) for number in done.inputs]
        first = inner[0].value_id if inner and inner[0].value_id >= 0 else None
        # Without its insides (a circular buffer lost them) what it read of variables is not known.
        flags = OpFlag.COMPOSITE | (OpFlag.VIEW if first is not None else OpFlag.UNSEEN_INPUTS)
        op_id = self._write_execution(
            done, found, known, int(flags), now_ns, n_outputs=len(done.outputs), first=first
        )
        name = graph.name or done.op_type
        self._values.read(done.inputs)
        for slot, (number, each) in enumerate(zip(done.outputs, found, strict=False)):
            linked = inner[slot].value_id
            value_id = linked if linked >= 0 else value_of(op_id, slot)
            made = Known(value_id, each, self.n_steps, name)
            self._values.put_eager(number, made, may_end=False)
            if made.bad:
                self._sink("read", f"output {slot} of {name}", made)
        self._end_step()

    def _write_execution(
        self,
        done: Execution,
        found: list[Health],
        known: list[Known],
        flags: int,
        now_ns: int,
        *,
        n_outputs: int,
        first: int | None = None,
    ) -> int:
        device = short_device(self._devices.get(done.devices[0], "") if done.devices else "")
        source = self._sources.user_line(done.frames)
        bad = any(each.bad for each in found)
        looked = bad or any(each.bad is not None for each in found)
        one = found[0] if found else UNKNOWN
        op_id = self._trace.op(
            self._trace.intern("site", {"op": done.op_type, **site_keys(source)}),
            phase=program.phase_of(done.op_type, ""),
            flags=flags | hit_flags(bad if looked else None),
            step=self.n_steps,
            start_ns=now_ns,
            layout=self._layout(known, one, n_outputs, 0, device),
            inputs=[each.value_id for each in known],
            n_outputs=n_outputs,
            first_value=first,
            stats=one.stats,
        )
        self._count(bad)
        for slot, each in enumerate(found):
            if each.stats is not None and (slot or each.bad) and first is None:
                self._stat(op_id, Role.OUTPUT, slot, value_of(op_id, slot), each, device)
        return op_id

    # Steps, values, sinks

    def _write(self, handle: Handle, op_id: int, value: Known, name: str) -> None:
        if value.bad:
            self._sink("parameter", name, value)
        self._values.put_variable(handle, Known(value_of(op_id, 0), UNKNOWN, self.n_steps, name))

    def _end_step(self) -> None:
        start_ns = self._step_start_ns if self._step_start_ns is not None else self._last_ns
        self._trace.writer.event(
            "step",
            step=self.n_steps,
            start_ns=start_ns,
            duration_ns=max(0, self._last_ns - start_ns),
            n_ops=self._step_ops,
            hits=self._step_hits,
            scalars={},
        )
        self.n_steps += 1
        self._step_ops = self._step_hits = 0
        self._step_start_ns = None
        self._active.clear()
        self._values.end_step()

    def _count(self, bad: bool) -> None:
        self._step_ops += 1
        self._step_hits += bad

    def _time(self, wall_time: float) -> int:
        now_ns = int((wall_time - self._epoch_s) * 1e9)
        if self._step_start_ns is None:
            self._step_start_ns = now_ns
        self._last_ns = max(self._last_ns, now_ns)
        return now_ns

    def _inputs_of_hit(self, op_id: int, known: list[Known], read: Health | None) -> None:
        """Say beside a bad output what the inputs held.

        Args:
            op_id: the op.
            known: its inputs.
            read: of a read of a variable, what it read.
        """
        for slot, each in enumerate(known[:_MAX_INPUTS]):
            if each.health.stats is not None:
                self._stat(op_id, Role.INPUT, slot, each.value_id, each.health, "")
            elif read is not None and each.value_id < 0 and read.stats is not None:
                # Nothing recorded wrote the variable: it held what was read.
                self._stat(op_id, Role.INPUT, slot, NO_ID, read, "", int(TensorFlag.PARAMETER))

    def _stat(
        self,
        op_id: int,
        role: Role,
        slot: int,
        value_id: int,
        found: Health,
        device: str,
        flags: int = 0,
    ) -> None:
        if found.stats is None:
            return
        entry = layout_entry(found, device)
        self._trace.stat(
            op_id,
            role,
            slot,
            value_id,
            found.stats,
            step=self.n_steps,
            tensor=self._trace.intern("tensor", entry) if entry is not None else 0,
            flags=flags,
            first_bad=found.first_bad,
        )

    def _keep(self, found: Health, value_id: int, name: str, op_id: int) -> None:
        """Store a tensor's values, while there is room in the budget."""
        values = found.values
        if values is None or values.array is None or self._kept_bytes > TENSOR_BUDGET_BYTES:
            return
        self._kept_bytes += values.array.nbytes
        if self._kept_bytes > TENSOR_BUDGET_BYTES:
            told = f"values past the first {TENSOR_BUDGET_BYTES >> 20} MiB were not kept"
            self._trace.note("drop", told, "warning")
            return
        data = values.array.tobytes()
        writer, step = self._trace.writer, self.n_steps
        writer.tensor(value_id, name, data, values.dtype, values.shape, step, op_id)

    def _sink(self, sink: str, name: str, known: Known) -> None:
        self._trace.sink(
            sink=sink,
            name=name,
            step=known.step,
            op_id=known.value_id >> SLOT_BITS if known.value_id >= 0 else NO_ID,
            value_id=known.value_id,
            t_ns=self._last_ns,
            **described(known.health.dtype, known.health.shape, known.health.stats),
        )

    def _layout(
        self, inputs: list[Known], found: Health, n_outputs: int, slot: int, device: str
    ) -> int:
        """Return the layout of an op of which one output is known."""
        shapes = [(each.health.dtype, each.health.shape) for each in inputs]
        key = (*shapes, found.dtype, found.shape, n_outputs, slot, device)
        number = self._layouts.get(key)
        if number is None:
            ins = [layout_entry(each.health, "") for each in inputs]
            outs: list[list[object] | None] = [None] * n_outputs
            if slot < n_outputs:
                outs[slot] = layout_entry(found, device)
            known = any(entry is not None for entry in (*ins, *outs))
            number = self._trace.intern("layout", {"in": ins, "out": outs}) if known else 0
            if len(self._layouts) > _MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = number
        return number
