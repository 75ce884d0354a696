"""What py-spy records (``--format raw`` and ``--format chrometrace``) as a trace of samples.

Raw is a stack and a count a line, without times: ``outer (file.py:1);inner (file.py:2) 15``.
The same form is what other profilers call folded or collapsed stacks. A Chrome trace of py-spy
holds only the changes of the stack, in microseconds since it began.
py-spy's third form is read by ``tracelens.convert.speedscope``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from tracelens.convert._columns import Imported
from tracelens.convert._textfile import BAD_JSON, beginning, lines, whole
from tracelens.convert.bulktrace import fresh_trace
from tracelens.convert.newtrace import Explain
from tracelens.convert.pyspy_samples import MAX_FRAMES, Samples, bounded, frame_text, step_in
from tracelens.errors import TraceError
from tracelens.storage.bulk import BulkShard

Progress = Callable[[int, int, str], None]

DEFAULT_RATE_HZ = 100
"""py-spy's own rate, which its raw form does not tell."""

_LINE = re.compile(rb"^(.*?) ?(\d{1,18})\r?$")
_PROCESS = re.compile(r"^process (\d+)(?::.*)?$")
_THREAD = re.compile(r"^thread \((?:0x)?([0-9a-fA-F]+)\)(?:: (.*))?$")
_FRAME = re.compile(r"^(.*?)( \([^()]*\))?$")
_CATEGORY = b'"py-spy"'
_SNIFFED_LINES = 20
_EVERY = 4096


class _Event(msgspec.Struct):
    """One event of a Chrome trace, as far as it is needed."""

    ph: str = ""
    name: str = ""
    ts: float = 0.0
    pid: int | str = 0
    tid: int | str = 0
    args: dict[str, Any] = {}


def sniff(path: Path) -> bool:
    """Tell whether a file is raw stacks or a Chrome trace of py-spy."""
    if not path.is_file():
        return False
    head = beginning(path)
    return _is_chrome(head) or _is_raw(head)


def convert(
    path: Path,
    out_path: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    explain: Explain | None = None,
) -> Imported:
    """Write samples as a trace.

    Args:
        path: the file.
        out_path: the trace to be made.
        force: replace a trace that is there.
        progress: called with ``(bytes read, bytes in all, what)``.
        explain: not used: there are no values.

    Raises:
        TraceError: no sample can be read.
        ConfigError: ``out_path`` exists.
    """
    problems: list[str] = []
    samples = Samples()
    told = "the changes of the stack, with times since py-spy began"
    if _is_chrome(beginning(path)):
        read_chrome(whole(path), samples, problems)
    else:
        told = f"stacks without times; each sample is taken as 1/{DEFAULT_RATE_HZ} s"
        total = path.stat().st_size
        read_raw(
            lines(path, problems), samples, problems, lambda done: _tell(progress, done, total)
        )
    problems += samples.problems()
    if not samples.samples:
        reason = problems[-1] if problems else "no line holds a stack and a count"
        raise TraceError(f"{path}: no samples: {reason}")
    with fresh_trace(out_path, force=force) as directory:
        shard = BulkShard(directory, epoch_unix_ns=0, framework="", host="")
        with shard:
            message = f"from {path.name}, py-spy: {told}"
            shard.event("note", kind="import", severity="info", message=message)
            steps = samples.write(shard)
    return Imported(0, steps, 0, tuple(problems), 0, shard.rows)


def read_raw(
    stacks: Iterable[bytes],
    samples: Samples,
    problems: list[str],
    progress: Callable[[int], None] | None = None,
    rate_hz: int = DEFAULT_RATE_HZ,
) -> None:
    """Take in stacks in py-spy's raw form.

    Args:
        stacks: the lines of the file.
        samples: where they go.
        problems: told how many lines are no stacks.
        progress: called now and then with the bytes read.
        rate_hz: samples a second.
    """
    done = bad = 0
    for number, line in enumerate(stacks):
        done += len(line)
        if progress is not None and number % _EVERY == 0:
            progress(done)
        matched = _LINE.match(line.rstrip(b"\n"))
        if matched is None:
            bad += 1 if line.strip() else 0
            continue
        thread, frames, step = _stack(matched[1].decode("utf-8", "replace"))
        count = int(matched[2])
        duration_ns = count * 1_000_000_000 // rate_hz
        samples.add(thread, frames, step, duration_ns=duration_ns, count=count)
    if bad:
        problems.append(f"{bad} lines are not a stack and a count, and are left out")


def read_chrome(data: bytes, samples: Samples, problems: list[str]) -> None:
    """Take in py-spy's Chrome trace; what follows damage is left out and told.

    Args:
        data: the file.
        samples: where they go.
        problems: told what is damaged.
    """
    stacks: dict[tuple[str, str], list[tuple[str, str, int | None]]] = {}
    since: dict[tuple[str, str], int] = {}
    bad = 0
    for event in _events(data, problems):
        if event.ph not in ("B", "E"):
            continue
        key = str(event.pid), str(event.tid)
        stack = stacks.setdefault(key, [])
        now_ns = bounded(event.ts * 1000)
        begin_ns = since.get(key, now_ns)
        if stack and now_ns > begin_ns:
            kept = stack[-MAX_FRAMES - 1 :]
            step = next((s for _, _, s in reversed(kept) if s is not None), None)
            texts = [text for text, _, _ in kept]
            thread = _THREAD.match(texts[0])
            name = f"{key[0]}/{key[1]}" if thread is None else thread[2] or thread[1]
            frames = texts if thread is None else texts[1:]
            samples.add(name, frames, step, duration_ns=now_ns - begin_ns, t_ns=begin_ns)
        since[key] = max(now_ns, begin_ns)
        if event.ph == "B":
            name, step = step_in(event.name)
            line = event.args.get("line")
            file = str(event.args.get("filename") or "")
            text = frame_text(name, file, line if isinstance(line, int) else None)
            stack.append((text, event.name, step))
        elif stack and stack[-1][1] == event.name:
            stack.pop()
        else:
            bad += 1
    if bad:
        problems.append(f"{bad} frames end that are not the innermost, and are passed over")


def _events(data: bytes, problems: list[str]) -> list[_Event]:
    """Return the events; what is damaged or cut off is left out and counted."""
    try:
        return msgspec.json.decode(data, type=list[_Event])
    except BAD_JSON as error:
        first = str(error)
    found, bad = [], 0
    # py-spy writes no space between events, and "},{" nowhere within one.
    parts = data.strip().removeprefix(b"[").removesuffix(b"]").split(b"},{")
    for number, part in enumerate(parts):
        before = b"{" if number else b""
        after = b"}" if number < len(parts) - 1 else b""
        try:
            found.append(msgspec.json.decode(before + part + after, type=_Event))
        except BAD_JSON:
            bad += 1
    problems.append(f"damaged or cut off ({first}): {bad} events are left out")
    return found


def _stack(text: str) -> tuple[str, list[str], int | None]:
    """Return the thread, frames and step of a line of raw stacks."""
    threads: list[str] = []
    frames: list[str] = []
    step = None
    for part in text.split(";"):
        if not part:
            continue
        if not frames:
            process, thread = _PROCESS.match(part), _THREAD.match(part)
            if process:
                threads.append(f"process {process[1]}")
                continue
            if thread:
                threads.append(thread[2] or thread[1])
                continue
        matched = _FRAME.match(part)
        name, place = (matched[1], matched[2] or "") if matched else (part, "")
        name, marked = step_in(name)
        step = step if marked is None else marked
        frames.append(name + place)
    return " ".join(threads) or "all threads", frames, step


def _is_chrome(head: bytes) -> bool:
    return head.lstrip()[:1] == b"[" and _CATEGORY in head


def _is_raw(head: bytes) -> bool:
    if b"\0" in head or head.lstrip()[:1] in (b"{", b"["):
        return False
    found = [line for line in head.split(b"\n")[:-1] or [head] if line.strip()][:_SNIFFED_LINES]
    stacks = [line for line in found if _LINE.match(line)]
    known = any(b";" in line or re.search(rb" \([^()]+:\d+\)", line) for line in stacks)
    return bool(stacks) and known and len(stacks) >= len(found) - 1


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(min(done, total), total, "stacks")
