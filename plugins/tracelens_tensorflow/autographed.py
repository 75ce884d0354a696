"""Which line of the program a line of AutoGraph's generated code stands for.

TensorFlow maps them back itself, but only on the thread that traces: ops of replicas that
`MirroredStrategy` traces on threads of their own keep the generated lines.
"""

from __future__ import annotations

from tensorflow.python.autograph.impl import api

GENERATED = "__autograph_generated_file"

_origins: dict[tuple[str, int], tuple[str, int, str]] = {}
_written: set[tuple[str, int]] = set()
_read: set[int] = set()


def origin_of(file: str, line: int) -> tuple[str, int, str] | None:
    """Return file, line and function that a generated line was made from, None if unknown."""
    if (file, line) not in _origins:
        _read_caches()
    return _origins.get((file, line))


def was_converted(file: str, line: int) -> bool:
    """Tell whether generated code stands for a line of the program."""
    if (file, line) not in _written:
        _read_caches()
    return (file, line) in _written


def _read_caches() -> None:
    """Take in what was converted since the last look."""
    transpiler = getattr(api, "_TRANSPILER", None)
    cached = getattr(getattr(transpiler, "_cache", None), "_cache", {})
    for factories in list(cached.values()):
        for factory in list(factories.values()):
            if id(factory) in _read:
                continue
            _read.add(id(factory))
            for place, origin in (getattr(factory, "source_map", None) or {}).items():
                _written.add((origin.loc.filename, origin.loc.lineno))
                _origins[place.filename, place.lineno] = (
                    origin.loc.filename,
                    origin.loc.lineno,
                    origin.function_name,
                )
