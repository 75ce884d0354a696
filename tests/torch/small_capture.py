"""A session that keeps events in a list, and a capture engine small enough to read at once."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tracelens.storage.format import RECORD


class ListWriter:
    epoch_monotonic_ns = 0

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.records: list[tuple[Any, ...]] = []
        self._ids = itertools.count(1)

    def event(self, t: str, **fields: Any) -> None:
        self.events.append({"t": t, **fields})

    def reserve(self) -> int:
        return len(self.records)

    def reserve_op_id(self) -> int:
        return next(self._ids)

    def write(self, position: int, *fields: Any) -> None:
        self.records.append(fields)

    def intern(self, kind: str, value: Any) -> int:
        return 1

    def committed(self) -> Any:
        return np.zeros(0, RECORD)

    def strings(self, id: int) -> Any:
        return {}

    def now_ns(self) -> int:
        return 0


class ListSession:
    def __init__(self, capture: str = "guard", nonfinite: str = "record") -> None:
        self.config = SimpleNamespace(capture=capture, nonfinite=nonfinite, engine=None)
        self.writer = ListWriter()
        self.current_step = 0
        self.judge = None
        self.captures: list[SmallCapture] = []

    def report_sink(self, **fields: Any) -> None:
        self.writer.event("sink", **fields)

    def note(
        self, kind: str, message: str, severity: str = "info", step: int | None = None
    ) -> None:
        step = self.current_step if step is None else step
        self.writer.event("note", kind=kind, message=message, severity=severity, step=step)

    def event(self, t: str, /, **fields: Any) -> None:
        self.writer.event(t, **fields)

    def explain_pending(self, *, act: bool = True) -> list[Any]:
        return []

    def auto_step(self) -> None:
        pass

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.writer.events if event["t"] == kind]

    def notes(self, kind: str) -> list[dict[str, Any]]:
        return [note for note in self.of("note") if note["kind"] == kind]


class SmallCapture(TorchDispatchMode):
    """Numbers ops and remembers which op wrote each storage, and whether it came out bad."""

    def __init__(self, session: Any, modules: Any = None) -> None:
        super().__init__()
        self.ops: list[tuple[str, bool]] = []
        self.data: list[tuple[str, int]] = []
        self._writers: dict[int, int] = {}
        self._alive: list[torch.Tensor] = []
        session.captures.append(self)

    def start(self) -> None:
        self.__enter__()

    def stop(self) -> None:
        self.__exit__(None, None, None)

    def begin_step(self, step: int, active: bool) -> None:
        self.step = step

    def end_step(self, step: int) -> None:
        pass

    def register_data(self, tensors: list[torch.Tensor], name: str) -> int:
        self.data.append((name, len(tensors)))
        return self._write(name, tensors)

    def value_id(self, tensor: torch.Tensor) -> int:
        op_id = self._writers.get(tensor.untyped_storage().data_ptr(), -1)
        return op_id * 16 if op_id >= 0 else -1

    def op_of(self, value_id: int) -> str:
        return self.ops[value_id >> 4][0]

    def first_bad(self) -> str:
        return next(name for name, bad in self.ops if bad and not name.startswith("empty"))

    def _write(self, name: str, tensors: list[Any]) -> int:
        bad = False
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor):
                self._writers[tensor.untyped_storage().data_ptr()] = len(self.ops)
                self._alive.append(tensor)
                bad |= tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
        self.ops.append((name, bad))
        return len(self.ops) - 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view:
            self._write(func.__name__, tree_leaves(out))
        return out
