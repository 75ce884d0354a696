"""The tools whose recordings can be imported: each is told by what lies at the path.

A further importer is one line here and a module with `sniff` and `convert`.
"""

from __future__ import annotations

from collections.abc import Callable
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


def importer_of(path: Path, name: str | None = None) -> Callable[..., Result]:
    """Return the function that imports what lies at a path.

    Args:
        path: a file or folder of another tool.
        name: the importer, if the caller knows.

    Raises:
        TraceError: there is nothing, or nothing that an importer knows.
    """
    if not path.exists():
        raise TraceError(f"{path}: no such file or directory")
    for each in [name] if name else IMPORTERS:
        module = import_module(f"tracelens.convert.{each}")
        if name or module.sniff(path):
            convert: Callable[..., Result] = module.convert
            return convert
    known = "; ".join(IMPORTERS.values())
    raise TraceError(f"{path}: not a recording that can be imported, which are: {known}")
