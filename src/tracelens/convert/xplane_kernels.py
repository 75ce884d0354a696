"""The device work of an XPlane profile as rows of the table ``kernels``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tracelens.convert._columns import MISSING, UNNAMED, Rows, masked, step_of
from tracelens.convert._hosttables import HostTables
from tracelens.convert.xplane_links import NamedOps, told
from tracelens.convert.xplane_profile import ProfiledKernel
from tracelens.convert.xplane_wire import Stat
from tracelens.storage.bulk import BulkShard


class KernelRows:
    """Kernels and copies, as columns.

    Args:
        epoch_ns: Unix time of time 0 of the trace.

    Attributes:
        hlo: the program and phase of each instruction of XLA that ran, by its name.
    """

    def __init__(self, epoch_ns: int) -> None:
        self._epoch_ns = epoch_ns
        self.hlo: dict[str, tuple[str, str]] = {}
        self._rows = Rows(
            ("corr_id", "device", "stream", "start_ns", "duration_ns", "size_bytes"),
            ("kind", "name", "grid", "block", "args"),
            ("occupancy",),
        )
        self._ops = Rows((), ("instruction", "op"))

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, kernel: ProfiledKernel) -> None:
        """Take one."""
        instruction = ""
        if kernel.hlo_op:
            instruction = f"{kernel.hlo_module}:{kernel.hlo_op}"
            self.hlo.setdefault(kernel.hlo_op, _hlo_of(kernel))
        self._ops.add(instruction, kernel.op)
        self._rows.add(
            kernel.corr_id, kernel.device, kernel.stream, kernel.start_unix_ns - self._epoch_ns,
            kernel.duration_ns, kernel.size_bytes,
            kernel.kind, kernel.name or UNNAMED, kernel.grid, kernel.block, _args(kernel),
            kernel.occupancy or None,
        )  # fmt: skip

    def write(
        self,
        shard: BulkShard,
        steps: Sequence[Mapping[str, int]],
        tables: HostTables,
        ops: Rows,
    ) -> None:
        """Write them, in order of time, with their op, launch and step.

        Args:
            shard: where they go.
            steps: of the profile.
            tables: what was written of the host.
            ops: the host's ops.
        """
        if not len(self._rows):
            return
        order = np.argsort(self._rows.number("start_ns"), kind="stable")
        corr = self._rows.number("corr_id")[order]
        calls = tables.launches(corr)
        launched = calls.row >= 0
        at = np.where(launched, calls.start_ns, self._rows.number("start_ns")[order])
        op_id = calls.op_id.copy()
        unknown = np.flatnonzero(op_id == MISSING)
        if len(unknown):
            named = NamedOps(ops, tables.op_id)
            instructions, of = self._named("instruction", order), self._named("op", order)
            for row in unknown.tolist():
                names = instructions[row], of[row]
                found = named.find(names, int(at[row]), launched=bool(launched[row]))
                op_id[row] = MISSING if found is None else found
        shard.write(
            "kernels",
            {
                **self._rows.columns(order),
                "kern_id": np.arange(len(order)),
                "op_id": masked(op_id),
                "span_id": masked(calls.span_id),
                "step": step_of(at, steps),
            },
        )

    def _named(self, column: str, order: NDArray[np.int64]) -> list[str]:
        """Return the strings of a column, empty where there is none."""
        # The last is what a code of -1 picks.
        texts = [*self._ops.texts(column), ""]
        return [texts[code] for code in self._ops.codes(column)[order].tolist()]


def _hlo_of(kernel: ProfiledKernel) -> tuple[str, str]:
    """Return the program and phase of a kernel's instruction.

    JAX writes into its path which transformation made it: ``jvp`` makes the forward pass of a
    gradient, the transpose of that the backward one.
    """
    path = str(kernel.details.get("name", "")) or kernel.op
    phase = "backward" if "transpose(" in path else "forward" if "jvp(" in path else "other"
    return kernel.hlo_module, phase


def _args(kernel: ProfiledKernel) -> str:
    named = {"op": kernel.op, "hlo_op": kernel.hlo_op, "hlo_module": kernel.hlo_module}
    kept: dict[str, Stat] = {key: value for key, value in named.items() if value}
    return told({**kernel.details, **kept})
