"""Levels ``ops`` and ``tensors`` of TF1 runs: every op that ran, from the run's own arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tracelens.captured import CapturedValues
from tracelens.events import NO_ID
from tracelens_tensorflow import session_ops as kinds
from tracelens_tensorflow.session_checks import reader
from tracelens_tensorflow.session_plan import Plan
from tracelens_tensorflow.session_records import Execution, Recorder, caller_keys
from tracelens_tensorflow.session_times import Timed

if TYPE_CHECKING:
    from tracelens.session import Session


class FullRecords:
    """Writes whole runs.

    Args:
        session: the recording.
        recorder: writes the ops.
    """

    def __init__(self, session: Session, recorder: Recorder) -> None:
        self._session = session
        self._recorder = recorder
        keeps_values = session.config.capture == "tensors"
        self._values = CapturedValues(session) if keeps_values else None

    @property
    def wanted(self) -> bool:
        """Whether the runs of this step are written whole."""
        config = self._session.config
        return config.capture != "guard" and config.is_active(self._session.current_step)

    def record(
        self,
        session: Any,
        plan: Plan,
        values: dict[str, Any],
        others: Sequence[Any],
        timed: Timed,
        number: int,
    ) -> dict[str, int]:
        """Write every op of a run; return value ids by tensor name.

        Args:
            session: the program's session.
            plan: what ran.
            values: arrays that it was given, or gave, by tensor name.
            others: arrays of the plan's other floats.
            timed: when its ops ran.
            number: how manieth run it is.
        """
        chosen = list(values)
        values.update((t.name, a) for t, a in zip(plan.other_floats(), others, strict=True))
        # The variable itself, which an update names first: its moments would triple what is read.
        written = list(dict.fromkeys(v for op in plan.writes for v in kinds.written_by(op)[:1]))
        epoch_ns = self._session.writer.manifest.epoch_unix_ns
        ids = self._recorder.record(
            Execution(
                plan,
                [op for op in plan.ops if plan.places[op].certain],
                values,
                after=dict(zip(written, reader(session)(written), strict=False)),
                step=self._session.current_step,
                devices=timed.devices,
                times={name: (at - epoch_ns, ns) for name, (at, ns) in timed.times.items()},
                source=caller_keys(),
                number=number,
            )
        )
        self._keep(values, chosen, ids)
        return ids

    def _keep(
        self, values: Mapping[str, Any], chosen: Sequence[str], ids: Mapping[str, int]
    ) -> None:
        """Store what was fed and fetched, and of the rest what a pattern names."""
        kept = self._values
        if kept is None:
            return
        kept.step, kept.active = self._session.current_step, True
        asked = set(chosen)
        for tensor, array in values.items():
            name = tensor.removesuffix(":0")
            if not isinstance(array, np.ndarray | np.generic) or array.dtype.kind in "OUS":
                continue
            by_name = tensor not in asked
            if kept.wanted(name, by_name=by_name) and kept.reserve(name, array.nbytes):
                data, dtype = np.ascontiguousarray(array).tobytes(), array.dtype.name
                kept.store(name, ids.get(tensor, NO_ID), data, dtype, list(array.shape))
