"""The toy framework's plugin, found by its entry point as any third party's would be."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import toyframework

from tracelens.events import OpFlag, Phase
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
        number = output.number
        bad = not math.isfinite(number)
        self._hits += bad
        frame = sys._getframe(3)
        site = writer.intern(
            "site",
            {
                "op": name,
                "file": frame.f_code.co_filename,
                "line": frame.f_lineno,
                "function": frame.f_code.co_name,
            },
        )
        op_id = writer.reserve_op_id()
        output.value_id = op_id * 16
        ids = [value.value_id for value in inputs] + [-1] * 4
        finite = 0.0 if bad else number
        writer.write(
            writer.reserve(),
            0,
            int(Phase.FORWARD),
            int(OpFlag.CHECKED | (OpFlag.HIT if bad else 0)),
            0,
            site,
            0,
            op_id,
            self._session.current_step,
            -1,
            -1,
            writer.now_ns(),
            -1,
            *ids[:4],
            len(inputs),
            1,
            1,
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
            output.value_id,
        )
