"""Numbers for the checks that are put into functions, and what each of them looks at."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from tracelens_tensorflow.frontier import Place


@dataclass(slots=True)
class Slot:
    """One check.

    Attributes:
        graph: weak reference to the graph of the tensor.
        tensor_name: of the tensor in that graph.
        sink: kind of the sink that the tensor is; empty for a value on the way.
        name: of the sink.
        masked: how often it tripped and no sink was bad.
    """

    graph: weakref.ref[Any]
    tensor_name: str
    sink: str
    name: str
    masked: int = 0

    def tensor(self) -> Any:
        """Return the tensor, None if its graph is gone."""
        graph = self.graph()
        return None if graph is None else graph.get_tensor_by_name(self.tensor_name)


class Slots:
    """All checks of the process, by number."""

    def __init__(self) -> None:
        self._slots: list[Slot] = []

    def add(self, graph: Any, place: Place) -> int:
        """Return the number of a new check."""
        self._slots.append(Slot(weakref.ref(graph), place.tensor.name, place.sink, place.name))
        return len(self._slots) - 1

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]


slots = Slots()
