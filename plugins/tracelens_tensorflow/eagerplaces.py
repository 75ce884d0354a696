"""Where in the user's code an eager op stands: line, layer and phase, from the Python frames."""

from __future__ import annotations

import sys
import threading
from enum import IntEnum
from types import CodeType, FrameType
from typing import TYPE_CHECKING, NamedTuple

from tracelens.events import Phase
from tracelens.userframes import line_of, source_at, source_keys
from tracelens_tensorflow import layers, sources

if TYPE_CHECKING:
    from tracelens.storage.writer import ShardWriter

_MAX_FRAMES = 200


class Place(NamedTuple):
    """Where an op stands.

    Attributes:
        code: the user's code object, None if no frame is the user's.
        lasti: its instruction.
        module: path of the Keras layer.
        phase: part of the step.
        own: a tape is at work, and the user's frame is one of a gradient function of theirs.
    """

    code: CodeType | None
    lasti: int
    module: str
    phase: Phase
    own: bool


class _Code(IntEnum):
    LIBRARY = 0
    USER = 1
    BACKWARD = 2
    OPTIMIZER = 3
    METRIC = 4


class _Held(threading.local):
    place: Place | None = None


held = _Held()
"""Where all ops of the calling thread stand until further notice (an optimizer's update)."""

_LIBRARY, _USER, _BACKWARD = _Code.LIBRARY, _Code.USER, _Code.BACKWARD

# By identity: the hash of a code object goes over its constants. The object is kept, so that its
# identity stays its own.
_classes: dict[int, tuple[_Code, CodeType]] = {}
_PHASES = {_Code.OPTIMIZER: Phase.OPTIMIZER, _Code.METRIC: Phase.OTHER}


def find(depth: int, *, backward: bool) -> Place:
    """Return where the calling thread stands.

    Args:
        depth: frames to leave out.
        backward: a tape is asked for gradients.
    """
    frame: FrameType | None = sys._getframe(depth + 1)
    phase = Phase.BACKWARD if backward else None
    inside = not backward
    for _ in range(_MAX_FRAMES):
        if frame is None:
            break
        at = frame.f_code
        known = _classes.get(id(at))
        if known is None:
            known = _classes[id(at)] = _classify(at), at
        kind = known[0]
        if kind is not _LIBRARY:
            if kind is _USER:
                return Place(
                    at, frame.f_lasti, layers.current_path(), phase or Phase.FORWARD, not inside
                )
            if kind is _BACKWARD:
                inside = True
            elif phase is None:
                phase = _PHASES[kind]
        frame = frame.f_back
    return Place(None, -1, layers.current_path(), phase or Phase.FORWARD, False)


class EagerSites:
    """Interned sites of places.

    Args:
        writer: the session's shard.
    """

    def __init__(self, writer: ShardWriter) -> None:
        self._writer = writer
        self._known: dict[tuple[str, int, int, str], int] = {}

    def of(self, kind: str, place: Place, *, exact: bool = True) -> int:
        """Return the site of an op of a kind at a place."""
        code = place.code
        key = (kind, id(code), place.lasti, place.module)
        number = self._known.get(key)
        if number is None:
            site: dict[str, object] = {"op": kind}
            if place.module:
                site["module"] = place.module
            if code is not None:
                line = line_of(code, place.lasti)
                site.update(source_keys(source_at(code.co_filename, line, code.co_name)))
            if not exact or code is None:
                site["exact"] = False
            number = self._known[key] = int(self._writer.intern("site", site))
        return number


def _classify(code: CodeType) -> _Code:
    file = code.co_filename
    if sources.USER_FILES.owns(file):
        return _Code.USER
    phase = sources.phase_of_frame(file, code.co_name)
    if phase is Phase.BACKWARD:
        return _Code.BACKWARD
    if phase is Phase.OPTIMIZER:
        return _Code.OPTIMIZER
    return _Code.METRIC if phase is Phase.OTHER else _Code.LIBRARY
