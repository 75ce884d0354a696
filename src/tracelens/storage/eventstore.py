"""The events of a trace: from the Parquet of sealed shards, from the JSON lines of live ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tracelens.storage.eventcheck import clean_event
from tracelens.storage.health import Problem
from tracelens.storage.parquet_files import DamagedSegmentError, read_file
from tracelens.storage.shardreader import ShardReader

MAX_EVENTS = 1_000_000
"""A shard's later events are not read into memory; ``sql`` reads them all."""

_STORED_APART = frozenset({"tensor", "collective", "fingerprint"})
"""Kinds with a table of their own (``eventlog.APART``); that module would cost pyarrow here."""


class EventStore:
    """Reads each shard's events once, when first asked for."""

    def __init__(self, readers: list[ShardReader]) -> None:
        self.problems: list[Problem] = []
        self._readers = readers
        self._loaded: dict[str, list[dict[str, Any]]] = {}

    def events(self, kind: str | None, rank: int | None) -> list[dict[str, Any]]:
        """Return events of one kind, or of every kind but stored tensors."""
        return [
            event
            for event in self._all(rank)
            if (event["t"] == kind if kind is not None else event["t"] not in _STORED_APART)
        ]

    def steps(self, first: int | None, last: int | None, rank: int | None) -> list[dict[str, Any]]:
        """Return step events of a range of steps (inclusive), by step, then rank.

        Scalars that came after a step was written (validation metrics) are among its own.
        """
        late: dict[tuple[Any, Any], dict[str, Any]] = {}
        for event in self.events("scalars", rank):
            place = (event.get("rank"), event.get("step"))
            late.setdefault(place, {}).update(event.get("scalars") or {})
        steps = [
            event
            for event in self._all(rank)
            if event["t"] == "step"
            and isinstance(event.get("step"), int)
            and (first is None or event["step"] >= first)
            and (last is None or event["step"] <= last)
        ]
        if late:
            steps = [_with_scalars(e, late.get((e["rank"], e["step"]))) for e in steps]
        return sorted(steps, key=lambda event: (event["step"], event["rank"]))

    def _all(self, rank: int | None) -> Iterator[dict[str, Any]]:
        for reader in self._readers:
            if rank is None or reader.shard.state.rank == rank:
                name = reader.shard.name
                if name not in self._loaded:
                    self._loaded[name] = self._load(reader)
                yield from self._loaded[name]

    def _load(self, reader: ShardReader) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for event in _shard_events(reader, self.problems):
            if len(found) >= MAX_EVENTS:
                self.problems.append(
                    Problem("truncated", reader.shard.name, f"only {MAX_EVENTS} events are shown")
                )
                break
            event["rank"] = reader.shard.state.rank
            found.append(clean_event(event))
        return found


def _with_scalars(step: dict[str, Any], late: dict[str, Any] | None) -> dict[str, Any]:
    return {**step, "scalars": {**(step.get("scalars") or {}), **late}} if late else step


def _shard_events(reader: ShardReader, problems: list[Problem]) -> Iterator[dict[str, Any]]:
    for table in ("steps", "events"):
        for file in reader.segments(table):
            try:
                payloads = read_file(file, ["payload"]).column("payload")
            except DamagedSegmentError as error:
                reader.quarantine(file, str(error))
                continue
            for chunk in payloads.chunks:
                for text in chunk:
                    event = _parse(text.as_py())
                    if event is not None:
                        yield event
    path = reader.shard.events
    if path is None:
        return
    from tracelens.storage.live import LineFollower

    try:
        lines = LineFollower(path, reader.shard.state.events_sealed_bytes)
    except OSError:
        return
    try:
        yield from lines.read()
    finally:
        lines.close()
    if lines.damaged_lines:
        problems.append(
            Problem(
                "damaged_lines",
                reader.shard.name,
                f"{lines.damaged_lines} event lines are damaged and left out",
                lines.damaged_lines,
            )
        )


def _parse(text: str | None) -> dict[str, Any] | None:
    try:
        event = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("t"), str) else None
