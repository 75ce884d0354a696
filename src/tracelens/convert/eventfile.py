"""TensorBoard's event files: written with its own messages, read without it.

An event file is TFRecords of ``Event`` messages; field numbers are those of TensorFlow's
``event.proto`` and ``summary.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tracelens.convert.protowire import (
    Value,
    WireError,
    double,
    fields,
    integer,
    message,
    signed,
    text,
)
from tracelens.convert.tensorproto import tensor
from tracelens.convert.tfrecord import records
from tracelens.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_VERSION = "brain.Event:2"
_FLOAT = struct.Struct("<f")
_SCALARS = "scalars"


class EventFile:
    """One event file while it is written.

    Args:
        directory: the run; it must exist.
        name: what follows ``events.out.tfevents.``.
        wall_time_s: Unix time that the file is said to have been begun at.

    Attributes:
        count: summaries written.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, directory: Path, name: str, wall_time_s: float) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError(
                "writing for TensorBoard needs it: pip install 'tracelens-toolkit[tensorboard]'"
            )
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.count = 0
        self._messages: Any = event_pb2
        self._summaries: Any = summary_pb2
        self._tensors: Any = tensor_pb2
        self._file = (directory / f"events.out.tfevents.{name}").open("wb")
        self._writer = RecordWriter(self._file)
        self._add(wall_time_s, 0, file_version=_VERSION)

    def scalars(self, wall_time_s: float, step: int, values: Iterable[tuple[str, float]]) -> None:
        """Write scalars of one step; NaN and Inf stay what they are."""
        found = [
            self._summaries.Summary.Value(tag=tag, simple_value=_single(value))
            for tag, value in values
        ]
        if found:
            self._summary(wall_time_s, step, found)

    def histogram(self, wall_time_s: float, step: int, tag: str, **told: Any) -> None:
        """Write a histogram; ``told`` are the fields of ``HistogramProto``."""
        made = self._summaries.HistogramProto(**told)
        self._summary(wall_time_s, step, [self._summaries.Summary.Value(tag=tag, histo=made)])

    def text(self, wall_time_s: float, step: int, tag: str, markdown: str) -> None:
        """Write a text, which TensorBoard shows as Markdown without any HTML in it."""
        value = self._summaries.Summary.Value(tag=tag)
        value.metadata.plugin_data.plugin_name = "text"
        value.tensor.CopyFrom(
            self._tensors.TensorProto(dtype=7, string_val=[markdown.encode("utf-8", "replace")])
        )
        self._summary(wall_time_s, step, [value])

    def graph(self, wall_time_s: float, graph_def: bytes) -> None:
        """Write the run's graph."""
        self._add(wall_time_s, 0, graph_def=graph_def)
        self.count += 1

    def run_metadata(self, wall_time_s: float, step: int, tag: str, run_metadata: bytes) -> None:
        """Write when and how long the graph's ops ran in one step."""
        tagged = self._messages.TaggedRunMetadata(tag=tag, run_metadata=run_metadata)
        self._add(wall_time_s, step, tagged_run_metadata=tagged)
        self.count += 1

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _summary(self, wall_time_s: float, step: int, values: list[Any]) -> None:
        self._add(wall_time_s, step, summary=self._summaries.Summary(value=values))
        self.count += len(values)

    def _add(self, wall_time_s: float, step: int, **what: Any) -> None:
        event = self._messages.Event(wall_time=wall_time_s, step=step, **what)
        self._writer.write(event.SerializeToString())


@dataclass(frozen=True, slots=True)
class ScalarEvent:
    """A scalar in an event file.

    Attributes:
        wall_time_s: Unix time at which it was written.
        step: the step that the program gave.
        tag: its name.
        value: may be NaN or Inf.
    """

    wall_time_s: float
    step: int
    tag: str
    value: float


def scalar_events(
    path: Path, damage: Callable[[str], None], other: Callable[[str], None]
) -> Iterator[ScalarEvent]:
    """Yield the scalars of an event file in order, both old ones and those of TensorFlow 2.

    Args:
        path: the file.
        damage: told, in a sentence, of what cannot be read.
        other: told the tag of what is no scalar.

    Raises:
        OSError: the file cannot be read.
    """
    plugins: dict[str, str] = {}
    for record in records(path, damage):
        try:
            yield from _of_event(record, plugins, other)
        except (WireError, ValueError) as error:
            damage(f"an event of {path.name} cannot be read: {error}")


def _of_event(
    record: bytes, plugins: dict[str, str], other: Callable[[str], None]
) -> Iterator[ScalarEvent]:
    wall_time_s, step, summary = 0.0, 0, b""
    for number, value in fields(record):
        if number == 1:
            wall_time_s = double(value)
        elif number == 2 and isinstance(value, int):
            step = signed(value)
        elif number == 5:
            summary = message(value)
    for number, value in fields(summary):
        if number == 1:
            tag, scalar = _of_value(message(value), plugins)
            if scalar is None:
                other(tag)
            else:
                yield ScalarEvent(wall_time_s, step, tag, scalar)


def _of_value(body: bytes, plugins: dict[str, str]) -> tuple[str, float | None]:
    """Return a summary value's tag, and its number if it is a scalar."""
    tag, scalar, held, plugin = "", None, b"", ""
    for number, value in fields(body):
        if number == 1:
            tag = text(value)
        elif number == 2:
            scalar = _float(value)
        elif number == 8:
            held = message(value)
        elif number == 9:
            plugin = _plugin_of(message(value))
    # Only the first value of a tag says which plugin it is for.
    plugin = plugin or plugins.get(tag, "")
    if plugin and len(plugins) < 1 << 16:
        plugins[tag] = plugin
    if scalar is None and held and plugin in ("", _SCALARS):
        array = tensor(held).array
        if array is not None and array.size == 1 and array.dtype.kind in "fiub":
            scalar = float(array.reshape(()))
    return tag, scalar


def _float(value: Value) -> float:
    """Return a fixed32 field as the float it stands for."""
    bits = integer(value)
    if bits >= 1 << 32:
        raise WireError("a number of 4 bytes is too large")
    found: float = _FLOAT.unpack(bits.to_bytes(4, "little"))[0]
    return found


def _plugin_of(metadata: bytes) -> str:
    for number, value in fields(metadata):
        if number == 1:
            return next((text(v) for n, v in fields(message(value)) if n == 1), "")
    return ""


def _single(value: float) -> float:
    """Return a number as the float32 that the file holds; what is too large for it is Inf.

    Examples:
        >>> _single(1e300), _single(0.5)
        (inf, 0.5)
    """
    if value != value or abs(value) <= 3.4028234663852886e38:
        return value
    return float("inf") if value > 0 else float("-inf")
