"""The inputs and outputs of the current op, each with its way to the producer or consumer."""

from __future__ import annotations

from dataclasses import dataclass

from tracelens.events import SLOT_BITS, Op, TensorRecord
from tracelens_tui import health
from tracelens_tui.texts import safe, tensor_kind, values
from tracelens_tui.widgets.listing import Listing
from tracelens_tui.widgets.virtual_table import Column, VirtualTable


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output in the pane.

    Attributes:
        tensor: the tensor.
        slot: its position.
        is_input: which side it is on.
        other: the op at the other end: producer of an input, first consumer of an output.
        more: how many further consumers there are.
    """

    tensor: TensorRecord
    slot: int
    is_input: bool
    other: Op | None = None
    more: int = 0

    @property
    def label(self) -> str:
        """``in 0`` or ``out 0``."""
        return f"{'in' if self.is_input else 'out'} {self.slot}"

    @property
    def link(self) -> str:
        """Where it comes from or goes to."""
        if self.other is not None:
            arrow = "←" if self.is_input else "→"
            more = f" +{self.more}" if self.more else ""
            return f"{arrow} {safe(self.other.name)} #{self.other.op_id}{more}"
        if self.is_input:
            return "parameter" if self.tensor.parameter else "← from outside"
        return ""


def ports_of(op: Op) -> list[Port]:
    """Return an op's ports, the other ends not known yet."""
    ins = [Port(tensor, slot, True) for slot, tensor in enumerate(op.inputs)]
    return ins + [Port(tensor, slot, False) for slot, tensor in enumerate(op.outputs)]


def producer_id(tensor: TensorRecord) -> int | None:
    """Return the id of the op that wrote a tensor, ``None`` if none was recorded."""
    return tensor.value_id >> SLOT_BITS if tensor.value_id >= 0 else None


class TensorsPane(VirtualTable):
    """Lists the tensors of an op; enter walks to the producer or the consumer."""

    HELP = """Inputs and outputs of the current op. **Enter** on an input goes to the op that wrote
    it, on an output to the op that reads it; `<` and `>` do so from anywhere."""

    def __init__(self, *, id: str | None = None) -> None:
        columns = (
            Column("", 5, lambda p: p.label, lambda p: "muted"),
            Column("", 1, lambda p: health.of_tensor(p.tensor).glyph,
                   lambda p: health.of_tensor(p.tensor).tone),
            Column("tensor", 11, lambda p: tensor_kind(p.tensor), share=1, rank=1),
            Column("values", 14, lambda p: values(p.tensor.stats),
                   lambda p: "error" if p.tensor.stats and p.tensor.stats.nonfinite else "",
                   share=3),
            Column("from / to", 12, lambda p: p.link, lambda p: "accent", share=2, rank=2),
        )  # fmt: skip
        super().__init__(columns, id=id, empty="no op selected")
        self.border_title = "inputs and outputs"
        self.ports: list[Port] = []

    def show_ports(self, ports: list[Port]) -> None:
        """Show these; the cursor goes to the first non-finite input."""
        self.ports = ports
        bad = [i for i, port in enumerate(ports) if health.of_tensor(port.tensor).tone == "error"]
        self.cursor = bad[0] if bad else 0
        self.show(Listing(ports), empty="it has no inputs and no outputs")
        self.scroll_to(y=0, animate=False, force=True, immediate=True)

    def update_ports(self, ports: list[Port]) -> None:
        """Show what is now known of the same ports."""
        self.ports = ports
        self.show(Listing(ports))
