"""When and where the ops of a `Session.run` ran, asked of the runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session

Times = dict[str, tuple[int, int]]


class Timed:
    """Asks one run for its step statistics.

    Attributes:
        times: ``(start, duration)`` in ns of each op by name, the start as Unix time.
        devices: its device, by name.
    """

    def __init__(self) -> None:
        self.times: Times = {}
        self.devices: dict[str, str] = {}

    def run(self, do: Callable[[Any, Any], Any]) -> Any:
        """Run with statistics.

        Args:
            do: runs, given buffers of ``RunOptions`` and ``RunMetadata``.
        """
        options = config_pb2.RunOptions(trace_level=config_pb2.RunOptions.FULL_TRACE)
        given = pywrap_tf_session.TF_NewBufferFromString(options.SerializeToString())
        told = pywrap_tf_session.TF_NewBuffer()
        try:
            result = do(given, told)
            self._read(pywrap_tf_session.TF_GetBuffer(told))
        finally:
            pywrap_tf_session.TF_DeleteBuffer(given)
            pywrap_tf_session.TF_DeleteBuffer(told)
        return result

    def _read(self, data: bytes) -> None:
        metadata = config_pb2.RunMetadata.FromString(data)
        for device in metadata.step_stats.dev_stats:
            # Streams of a GPU repeat its ops under names of their own.
            if "/stream:" in device.device or "/memcpy" in device.device:
                continue
            for op in device.node_stats:
                start_ns = op.all_start_nanos or op.all_start_micros * 1000
                duration_ns = op.op_end_rel_nanos - op.op_start_rel_nanos
                if not op.op_end_rel_nanos:
                    duration_ns = (op.op_end_rel_micros - op.op_start_rel_micros) * 1000
                self.times[op.node_name] = (
                    start_ns + op.op_start_rel_nanos,
                    max(0, int(duration_ns)),
                )
                self.devices[op.node_name] = device.device
