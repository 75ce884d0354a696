"""The toy framework's plugin, found by its entry point as any third party's would be."""

from __future__ import annotations

import linecache
import math
import sys
from collections.abc import Callable
from typing import Any

import toyframework

from tracelens.events import OpFlag, Phase, RecordKind, Role
from tracelens.session import Session

fail_in: set[str] = set()
"""Methods that shall raise, for tests of failing hooks."""

calls: list[str] = []
"""What the session asked of the backend, in order."""


class ToyBackend:
    name = "toyframework"

    def start(self, session: Session) -> None:
        self._called("start")
        self._session = session
        self._hits = 0
        toyframework.observers.append(self._observe)

    def stop(self) -> None:
        toyframework.observers.clear()
        self._called("stop")

    def begin_step(self, step: int, *, active: bool) -> None:
        self._called(f"begin_step {step}{'' if active else ' inactive'}", "begin_step")
        self._hits = 0

    def end_step(self, step: int) -> dict[str, float]:
        self._called(f"end_step {step}", "end_step")
        return {"hits": self._hits}

    def wrap_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._called("wrap_step")
        return function

    def tap(self, value: Any, name: str) -> bool:
        self._called(f"tap {name}", "tap")
        return isinstance(value, toyframework.Value)

    def watch(self, module: Any, name: str) -> bool:
        self._called("watch")
        return False

    def check(self, value: Any, name: str) -> bool:
        self._called(f"check {name}", "check")
        if not isinstance(value, toyframework.Value):
            return False
        if not math.isfinite(value.number):
            self.sink("check", name, value)
        return True

    def describe(self) -> dict[str, Any]:
        return {"engine": "toy", "why": "there is no other"}

    def sink(self, sink: str, name: str, value: toyframework.Value) -> None:
        """Report a bad value, as a framework's hooks would."""
        number = value.number
        self._session.report_sink(
            sink=sink,
            name=name,
            op_id=value.value_id >> 4,
            value_id=value.value_id,
            dtype="float64",
            shape=[],
            stats={
                "numel": 1,
                "nan": int(math.isnan(number)),
                "posinf": int(number == math.inf),
                "neginf": int(number == -math.inf),
                "vmin": None,
                "vmax": None,
            },
            first_bad=[0],
        )

    def _called(self, text: str, method: str | None = None) -> None:
        calls.append(text)
        if (method or text) in fail_in:
            raise RuntimeError(f"{method or text} is broken")

    def _observe(
        self, name: str, inputs: tuple[toyframework.Value, ...], output: toyframework.Value
    ) -> None:
        writer = self._session.writer
        bad = not math.isfinite(output.number)
        self._hits += bad
        frame = sys._getframe(3)
        file, line = frame.f_code.co_filename, frame.f_lineno
        site = writer.intern(
            "site",
            {
                "op": name,
                "file": file,
                "line": line,
                "function": frame.f_code.co_name,
                "code": linecache.getline(file, line).strip(),
            },
        )
        op_id = writer.reserve_op_id()
        output.value_id = op_id * 16
        ids = [*(value.value_id for value in inputs), -1, -1, -1, -1][:4]
        flags = OpFlag.CHECKED | (OpFlag.HIT if bad else 0)
        self._write(RecordKind.OP, flags, site, op_id, ids, len(inputs), 1, output)
        if bad:
            for slot, value in enumerate(inputs):
                self._write(RecordKind.STAT, 0, 0, op_id, [-1] * 4, Role.INPUT, slot, value)
            first_bad = [0, -1, -1, -1]
            self._write(RecordKind.STAT, 0, 0, op_id, first_bad, Role.OUTPUT, 0, output)

    def _write(
        self,
        kind: int,
        flags: int,
        site: int,
        op_id: int,
        ids: list[int],
        n_in: int,
        n_out: int,
        value: toyframework.Value,
    ) -> None:
        writer = self._session.writer
        tensor = writer.intern("tensor", ["float64", [], "cpu"])
        number = value.number
        finite = number if math.isfinite(number) else 0.0
        writer.write(
            writer.reserve(),
            int(kind),
            int(Phase.FORWARD),
            int(flags),
            0,
            site,
            tensor if kind == RecordKind.STAT else 0,
            op_id,
            self._session.current_step,
            -1,
            -1,
            writer.now_ns(),
            -1,
            *ids,
            int(n_in),
            n_out,
            2,
            0,
            finite,
            finite,
            finite,
            0.0,
            abs(finite),
            1,
            int(math.isnan(number)),
            int(number == math.inf),
            int(number == -math.inf),
            int(number == 0),
            value.value_id,
        )
