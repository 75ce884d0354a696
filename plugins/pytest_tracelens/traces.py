"""The stretch of a recording that belongs to a test: judged, copied into a trace, pointed at."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tracelens.analysis.live import RingOps
from tracelens.analysis.survivors import survivors
from tracelens.errors import NonFiniteError, SessionError
from tracelens.frames import at_line
from tracelens.session import Session
from tracelens.storage.excerpt import with_steps_from, write_excerpt
from tracelens.storage.manifest import MANIFEST
from tracelens.storage.ring import Records

Json = dict[str, Any]

_NAME_BYTES = 120


@dataclass(frozen=True, slots=True)
class Place:
    """Where a window begins in a recording.

    Attributes:
        step: number of its first step.
        position: the ring's position before its first record.
        event: where its first event is written.
    """

    step: int = 0
    position: int = 0
    event: int = 0

    @classmethod
    def now(cls, session: Session) -> Place:
        """Return the place where a recording is now."""
        writer = session.writer
        return cls(session.current_step, writer.reserve(), writer.events_end())


def left(session: Session, place: Place) -> list[Json]:
    """Return the findings of the bad values that were left since a place."""
    writer = session.writer
    mine, context, step = _records(session, place), session.context(), session.current_step
    source = RingOps(mine, writer.strings, rank=session.rank)
    if not survivors(mine, source, context, last_step=step):
        return []
    # What was made before the test may be why: now the whole ring is asked.
    source = RingOps(writer.committed(), writer.strings, rank=session.rank)
    return survivors(mine, source, context, last_step=step)


def write(session: Session, place: Place, path: Path, findings: Iterable[Json]) -> None:
    """Write what was recorded since a place as a trace.

    Args:
        session: the recording.
        place: where the test began.
        path: where the trace goes.
        findings: what to say was found, its steps counted from the test's first.

    Raises:
        SessionError: something else lies there.
        OSError: it cannot be written.
    """
    make_room(path)
    found = list(findings)
    events = [e for e in session.writer.events_from(place.event) if e.get("t") != "finding"]
    told = [{"t": "finding", **with_steps_from(-place.step, each)} for each in found]
    write_excerpt(
        session.writer,
        path,
        _records(session, place),
        [*events, *told],
        first_step=place.step,
        framework=", ".join(backend.name for backend in session.backends),
    )


def make_room(path: Path) -> None:
    """Make the directory of a trace, and remove the trace of an earlier run.

    Raises:
        SessionError: something that is no trace lies there.
        OSError: it cannot be made.
    """
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    if path.exists():
        if not (path / MANIFEST).exists():
            raise SessionError(f"{path} is no trace; remove it or choose another --tracelens-dir")
        shutil.rmtree(path)


def path_of(node_id: str, directory: Path) -> Path:
    """Return where the trace of a test goes.

    >>> path_of("tests/test_a.py::TestB::test_c[x-1]", Path("d")).as_posix()
    'd/test_a-TestB-test_c-x-1.tltrace'
    """
    file, _, rest = node_id.partition("::")
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{Path(file).stem}-{rest}").strip("-")
    if len(name) > _NAME_BYTES:
        digest = hashlib.sha256(node_id.encode()).hexdigest()[:8]
        name = f"{name[:_NAME_BYTES]}-{digest}"
    return directory / f"{name}.tltrace"


def shown(path: Path) -> str:
    """Return a path as a person types it: from here, if it lies below."""
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return os.fspath(path)


def raise_at(finding: Json, sentence: str) -> None:
    """Raise at the line that a finding blames, whose own frame is gone, for a debugger to stand at.

    Raises:
        NonFiniteError: always, if the line is known.
    """
    frame = (finding.get("first_cause") or {}).get("source")
    if not frame:
        return

    def fail(_: object) -> NoReturn:
        raise NonFiniteError(sentence, finding)

    at_line(frame["file"], frame["line"], str(frame.get("function") or ""), {}, fail)


def _records(session: Session, place: Place) -> Records:
    writer = session.writer
    newest = writer.committed(max(1, writer.reserve() - place.position))
    return newest[newest["seq"] > place.position]
