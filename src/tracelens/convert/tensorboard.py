"""A trace for TensorBoard, and TensorBoard's scalars as a trace.

``export`` writes one run folder ``LOGDIR/NAME`` (or ``LOGDIR/NAME/rank0`` … for several ranks), so
that several traces beside each other are compared by TensorBoard.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from tracelens.convert._output import new_directory
from tracelens.convert.eventfile import EventFile
from tracelens.convert.tensorboard_in import convert, sniff
from tracelens.errors import ConfigError, TraceLensError

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

__all__ = ["Run", "convert", "export", "sniff"]

WRITERS = ("tensorboard_scalars", "tensorboard_values", "tensorboard_graph", "tensorboard_texts")
"""Modules of this package that make up a run, each with ``write(run: Run) -> None``; one may also
write files of its own into ``run.directory`` and count them with ``run.files.append``."""


@dataclass(frozen=True, slots=True)
class Run:
    """One rank on its way to TensorBoard.

    Attributes:
        reader: the trace.
        rank: whose run it is.
        directory: the run's folder.
        events: its event file.
        first_step: leave out earlier steps.
        last_step: leave out later steps.
        verdict: the report of ``tracelens why``; empty if it is not to be written.
        files: further files that writers made.
    """

    reader: TraceReader
    rank: int
    directory: Path
    events: EventFile
    first_step: int | None
    last_step: int | None
    verdict: str
    files: list[Path]

    def wall_time_s(self, t_ns: int | None) -> float:
        """Return a time of the trace as Unix time, on the clock of rank 0."""
        since_epoch_ns = (t_ns or 0) + self.reader.clock_offset_ns(self.rank)
        return (self.reader.manifest.epoch_unix_ns + since_epoch_ns) / 1e9

    def begin_ns(self, step: int) -> int:
        """Return when a step began, 0 if that is not known."""
        found = self.reader.steps(step, step, rank=self.rank)
        start_ns = found[0].get("start_ns") if found else None
        return start_ns if isinstance(start_ns, int) else 0

    def where(self, table: str = "") -> str:
        """Return the SQL condition of the rank and the steps wanted."""
        dot = f"{table}." if table else ""
        parts = [f"{dot}rank = {int(self.rank)}"]
        if self.first_step is not None:
            parts.append(f"{dot}step >= {int(self.first_step)}")
        if self.last_step is not None:
            parts.append(f"{dot}step <= {int(self.last_step)}")
        return " AND ".join(parts)

    def wants(self, step: int) -> bool:
        """Tell whether a step is to be written."""
        after = self.first_step is None or step >= self.first_step
        return after and (self.last_step is None or step <= self.last_step)


def export(
    reader: TraceReader,
    out_path: str | os.PathLike[str],
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    force: bool = False,
    verdict: str = "",
) -> int:
    """Write scalars, statistics, histograms of stored values, the graph and the findings.

    Args:
        reader: an open trace.
        out_path: TensorBoard's ``--logdir``; made if it is missing.
        first_step: leave out earlier steps.
        last_step: leave out later steps.
        force: replace what an earlier export of a trace of this name left.
        verdict: the report of ``tracelens why``, to be written as a text.

    Returns:
        How many summaries and files were written.

    Raises:
        ConfigError: tensorboard is not installed, or the run's folder exists.
        TraceLensError: it cannot be written.
    """
    logdir = Path(out_path)
    if logdir.exists() and not logdir.is_dir():
        raise ConfigError(f"{logdir} is a file: this export writes a folder")
    name = reader.path.name.removesuffix(".tltrace") or "run"
    count = 0
    try:
        logdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TraceLensError(f"cannot write {logdir}: {error.strerror or error}") from None
    with new_directory(logdir / name, force=force) as made:
        for rank, directory in _directories(reader, made):
            begun_s = reader.manifest.epoch_unix_ns / 1e9
            with EventFile(directory, f"{int(begun_s)}.tracelens", begun_s) as events:
                run = Run(reader, rank, directory, events, first_step, last_step, verdict, [])
                for writer in WRITERS:
                    import_module(f"tracelens.convert.{writer}").write(run)
                count += events.count + len(run.files)
    return count


def _directories(reader: TraceReader, made: Path) -> Iterator[tuple[int, Path]]:
    ranks = reader.ranks()
    for rank in ranks:
        directory = made if len(ranks) == 1 else made / f"rank{rank}"
        directory.mkdir(exist_ok=True)
        yield rank, directory
