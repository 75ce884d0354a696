"""Reports bad values that reached a sink, without flooding a trace that is all NaN by now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracelens.events import NO_ID, SLOT_BITS
from tracelens.judge import reported_here

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracelens.session import Session

MAX_PER_KIND = 8
"""Sinks of one kind and name that are told; a run that goes on with NaN repeats them for ever."""

_PER_TENSOR = ("gradient", "parameter")


def fields_of(
    sink: str,
    name: str,
    step: int,
    value_id: int,
    described: Mapping[str, Any],
    doubts: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the fields of a ``sink`` event.

    Args:
        sink: its kind.
        name: the tensor's name.
        step: the step's number.
        value_id: the value it holds, -1 unknown.
        described: what is known of the tensor: dtype, shape, statistics.
        doubts: why the value's history may not be the first run's.
    """
    return {
        "sink": sink,
        "name": name,
        "step": step,
        "op_id": value_id >> SLOT_BITS if value_id >= 0 else NO_ID,
        "value_id": value_id,
        **described,
        **({"doubts": list(doubts)} if doubts else {}),
    }


class SinkFilter:
    """Passes a step's sinks on to the session.

    Of the gradients or parameters that went bad together, the one that was written first is
    told, with how many there are: they share a first cause.

    Args:
        session: the recording.
        name_of: names a parameter; asked for sinks that come with a tensor and no name.
    """

    def __init__(
        self, session: Session, name_of: Callable[[Any], str] = lambda _: "a parameter"
    ) -> None:
        self._session = session
        self._name_of = name_of
        self._told: dict[tuple[str, str], int] = {}
        self._judge = session.judge

    def report(self, sinks: list[dict[str, Any]]) -> None:
        """Report the sinks of one moment.

        Args:
            sinks: fields of ``sink`` events; ``tensor`` (a parameter whose name is wanted) is
                taken out.
        """
        if self._judge is not self._session.judge:
            self._judge = self._session.judge  # a new window: what it holds is news again
            self._told.clear()
        together: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for sink in sinks:
            tensor = sink.pop("tensor", None)
            if tensor is not None and not sink["name"]:
                sink["name"] = self._name_of(tensor)
            if sink["sink"] in _PER_TENSOR:
                together.setdefault((sink["sink"], sink["step"]), []).append(sink)
            else:
                self._tell(sink)
        for group in together.values():
            known = [sink for sink in group if sink["value_id"] >= 0]
            first = min(known, key=lambda sink: sink["value_id"]) if known else group[0]
            self._tell({**first, "count": len(group)})

    def _tell(self, sink: dict[str, Any]) -> None:
        key = (sink["sink"], sink["name"] if sink["sink"] not in _PER_TENSOR else "")
        told = self._told.get(key, 0)
        # A guard looks at every answer of a server that may run for ever, and sets bounds itself.
        if told < MAX_PER_KIND or reported_here.get() is not None:
            self._told[key] = told + 1
            self._session.report_sink(**sink)
