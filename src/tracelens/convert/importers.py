"""The tools whose recordings can be imported: each is told by what lies at the path.

A further importer is one line here and a module with `sniff` and `convert`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol

from tracelens.errors import TraceError

Progress = Callable[[int, int, str], None]

IMPORTERS = {
    "tfdbg": "a folder of tfdbg v2 (tf.debugging.experimental.enable_dump_debug_info)",
    "xplane": "XPlane profiles of TensorFlow or JAX (*.xplane.pb, or the profiler's folder)",
    "nsys": "Nsight Systems' sqlite exports (nsys export --type sqlite)",
    "speedscope": "speedscope's JSON (py-spy, rbspy, 0x)",
    "pyspy": "py-spy's raw stacks and Chrome traces (py-spy record -f raw)",
    "memory_snapshot": "PyTorch's memory snapshots and raw memory timelines",
    "kineto": "PyTorch's (Kineto's) and other Chrome traces (*.json, *.json.gz, archives, folders)",
    "tensorboard": "scalars of TensorBoard's event files (events.out.tfevents.*, or a log folder)",
}
"""Name of the module in `tracelens.convert` -> what it reads, for messages."""


class Result(Protocol):
    """What an import tells."""

    @property
    def ops(self) -> int:
        """Ops written."""

    @property
    def steps(self) -> int:
        """Steps found."""

    @property
    def findings(self) -> int:
        """Findings written."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be read."""


SEVERAL = ("kineto", "xplane", "nsys", "memory_snapshot")
"""Importers whose ``convert_files`` makes one trace of several files, a rank each."""


def importer_of(path: Path, name: str | None = None) -> Callable[..., Result]:
    """Return the function that imports what lies at a path.

    Args:
        path: a file or folder of another tool.
        name: the importer, if the caller knows.

    Raises:
        TraceError: there is nothing, or nothing that an importer knows.
    """
    convert: Callable[..., Result] = import_module(
        f"tracelens.convert.{name or name_of(path)}"
    ).convert
    if not path.exists():
        raise TraceError(f"{path}: no such file or directory")
    return convert


def name_of(path: Path) -> str:
    """Return the importer that knows what lies at a path.

    Raises:
        TraceError: there is nothing, or nothing that an importer knows.
    """
    if not path.exists():
        raise TraceError(f"{path}: no such file or directory")
    for each in IMPORTERS:
        if import_module(f"tracelens.convert.{each}").sniff(path):
            return each
    known = "; ".join(IMPORTERS.values())
    raise TraceError(f"{path}: not a recording that can be imported, which are: {known}")


def files_importer_of(paths: Sequence[Path], name: str | None = None) -> Callable[..., Result]:
    """Return the function that imports several files as the ranks of one trace.

    A file that no importer knows is left to that function, which says what is wrong with it.

    Args:
        paths: files of another tool.
        name: the importer, if the caller knows.

    Raises:
        TraceError: one is missing, none is known, or their importer takes only one.
    """
    for path in paths:
        if not path.exists():
            raise TraceError(f"{path}: no such file or directory")
    chosen, first = name, None
    for path in () if name else paths:
        try:
            chosen = name_of(path)
        except TraceError as error:
            first = first or error
            continue
        break
    if chosen is None:
        assert first is not None
        raise first
    if chosen not in SEVERAL:
        raise TraceError(f"{IMPORTERS[chosen]}: only one can be imported at a time")
    convert: Callable[..., Result] = import_module(f"tracelens.convert.{chosen}").convert_files
    return convert
