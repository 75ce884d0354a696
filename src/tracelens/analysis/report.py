"""The text report of a verdict or a finding."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tracelens.analysis.ansi import Paint
from tracelens.analysis.cause import sink_words
from tracelens.analysis.names import display
from tracelens.analysis.rules.case import say
from tracelens.events import STRUCTURAL

Why = Mapping[str, Any]

_LABEL = 10
_MIN_WIDTH = 40
_PATH_HEAD, _PATH_TAIL = 5, 3
_TENSORS = 6
_DEVICE_SHOWN_UNLESS = ("cpu", None, "")


def render(why: Why, *, color: bool = False, width: int = 100) -> str:
    """Return the report as text, no line break at its end.

    Args:
        why: what ``verdict`` or ``explain`` returned.
        color: colour it with ANSI codes.
        width: columns to wrap at.
    """
    paint = Paint(color)
    width = max(width, _MIN_WIDTH)
    first = why.get("first_cause")
    if why.get("verdict") == STRUCTURAL:
        return "\n".join(_structural_lines(why, paint, width))
    if why.get("verdict") == "clean" and not first:
        told = "  no non-finite value reached anything that matters"
        return "\n".join([paint("clean", "green", "bold") + told, *_unseen(why, paint, width)])
    lines = [_headline(why, paint)]
    if first:
        lines += _cause_lines(first, paint, width)
        lines += _wrapped("path", _path_text(why), paint, width)
        lines += _wrapped("why", first.get("why") or "", paint, width)
        lines += _wrapped("fix", first.get("fix") or "", paint, width)
    else:
        lines += _wrapped("why", why.get("message") or _first_message(why), paint, width)
        lines += _wrapped("fix", why.get("advice") or "", paint, width)
    lines += _wrapped("data", _data_text(why.get("data")), paint, width)
    doubts = why.get("doubts") or []
    if doubts:
        lines += _wrapped("not exact", "; ".join(doubts), paint, width)
    more = len(why.get("findings") or ()) - 1
    if more > 0:
        noun = "finding" if more == 1 else "findings"
        lines += _wrapped("also", f"{more} further {noun} (all with --json)", paint, width)
    return "\n".join(lines + _unseen(why, paint, width))


def _unseen(why: Why, paint: Paint, width: int) -> list[str]:
    """Tell what the recording missed: a verdict is worth no more than what it was made from."""
    trace = why.get("trace") or {}
    return [
        *_wrapped("not seen", "; ".join(trace.get("unseen") or ()), paint, width),
        *_wrapped("damage", "; ".join(trace.get("problems") or ()), paint, width),
    ]


def one_sentence(why: Why) -> str:
    """Return the finding in one sentence, for warnings, exceptions and test reports.

    What, how many, where in the user's code, in which module and phase.
    """
    first = why.get("first_cause")
    if not first:
        return str(why.get("message") or _first_message(why) or "no non-finite value was found")
    word = _kind_word(first.get("kind"))
    frame = first.get("source")
    place = f"{_short(frame['file'])}:{frame['line']}" if frame else "an unknown line"
    module = f" in {first['module']}" if first.get("module") else ""
    code = f" `{frame['code']}`" if frame and frame.get("code") else ""
    step = f" of step {first['step']}" if _is_step(first.get("step")) else ""
    origin = first.get("origin", "op")
    if origin in ("data", "outside"):
        start = f"{word} came in with the data{_sample_words(why.get('data'))}, first read at"
    elif origin == "parameter":
        start = f"{word} was already in a parameter, first read at"
    else:
        counts = _output_counts(first)
        start = f"{word} first made by {display(first['op'])}{f' ({counts})' if counts else ''} at"
    phase = "" if origin in ("data", "outside") else f" ({first['phase']}{step})"
    sink = why.get("sink")
    end = f", seen in {sink_words(sink)}" if sink else ""
    return f"{start} {place}{code}{module}{phase}{end}: {first['why']}"


def _headline(why: Why, paint: Paint) -> str:
    first = why.get("first_cause") or {}
    sink = why.get("sink")
    if why.get("verdict") in ("masked", "clean"):
        count = max(len(why.get("findings") or ()), 1)
        places = "1 place" if count == 1 else f"{count} places"
        text = paint("INFO", "cyan", "bold")
        return f"{text}  non-finite values that do no harm: {places}"
    kind = why.get("kind") or (sink and _kind_of_counts(sink)) or first.get("kind")
    parts = [paint(_kind_word(kind), "red", "bold")]
    step = sink.get("step") if sink else first.get("step")
    if _is_step(step):
        parts.append(f"step {step}")
    if first.get("rank"):
        parts.append(f"rank {first['rank']}")
    phase = _seen_in_phase(why) or first.get("phase")
    if phase and phase != "other":
        parts.append(str(phase))
    if sink:
        parts.append(f"first seen: {sink_words(sink)}{_sink_counts(sink)}")
    if isinstance(why.get("loss"), (int, float)):
        parts.append(f"the loss is finite: {say(why['loss'])}")
    return "  ".join(parts)


def _seen_in_phase(why: Why) -> str | None:
    """Return the phase of the op at which the sink saw the value."""
    path = why.get("path") or ()
    return path[-1].get("phase") if path and why.get("sink") else None


def _structural_lines(why: Why, paint: Paint, width: int) -> list[str]:
    """Tell a finding about how the program is built or run."""
    step = f"  step {why['step']}" if _is_step(why.get("step")) else ""
    lines = [paint(str(why.get("rule", "finding")).upper(), "yellow", "bold") + step]
    lines += _wrapped("what", str(why.get("message") or ""), paint, width)
    lines += _place_lines("at", why, paint, width)
    return lines + _wrapped("fix", str(why.get("advice") or ""), paint, width)


def _place_lines(label: str, told: Why, paint: Paint, width: int) -> list[str]:
    frame = told.get("source")
    where = f"{told['module']}  " if told.get("module") else ""
    if frame:
        function = f" in {frame['function']}" if frame.get("function") else ""
        place = f"{where}{_short(frame['file'])}:{frame['line']}{function}"
    else:
        place = f"{where}source line not known"
    lines = _wrapped(label, place, paint, width, style="bold")
    if frame and frame.get("code"):
        lines.append(" " * (_LABEL + 4) + paint(frame["code"], "cyan"))
    return lines


def _cause_lines(first: Why, paint: Paint, width: int) -> list[str]:
    lines = _place_lines("cause", first, paint, width)
    forward = first.get("forward")
    op = display(str(first["op"]))
    of_forward = f", in the backward of {display(forward['op'])}" if forward else ""
    step = f" of step {first['step']}" if _is_step(first.get("step")) else ""
    lines += _wrapped("op", f"{op}{of_forward} ({first['phase']}{step})", paint, width)
    lines += _tensor_lines("in", first.get("inputs") or (), paint, width)
    lines += _tensor_lines("out", first.get("outputs") or (), paint, width)
    return lines


def _tensor_lines(label: str, tensors: Sequence[Why], paint: Paint, width: int) -> list[str]:
    lines: list[str] = []
    known = [t for t in tensors if t.get("dtype") or t.get("numel") is not None]
    for tensor in known[:_TENSORS]:
        lines += _wrapped(label, _tensor_text(tensor), paint, width)
    if len(known) > _TENSORS:
        lines += _wrapped(label, f"and {len(known) - _TENSORS} more", paint, width)
    return lines


def _tensor_text(tensor: Why) -> str:
    shape = tensor.get("shape")
    sizes = f"[{', '.join(map(str, shape))}]" if shape is not None else ""
    parts = [f"{tensor.get('dtype') or 'tensor'}{sizes}"]
    if tensor.get("device") not in _DEVICE_SHOWN_UNLESS:
        parts.append(str(tensor["device"]))
    if tensor.get("parameter"):
        parts.append("parameter")
    if tensor.get("overwritten"):
        parts.append("overwritten in place")
    counts = _counts(tensor)
    if counts:
        parts.append(counts)
    if isinstance(tensor.get("min"), (int, float)):
        parts.append(f"min {say(tensor['min'])}  max {say(tensor.get('max'))}")
        if isinstance(tensor.get("limit"), (int, float)):
            parts.append(f"(limit {say(tensor['limit'])})")
    if any(tensor.get("first_bad") or ()):
        parts.append("at " + " ".join(str(index) for index in tensor["first_bad"]))
    if tensor.get("samples"):
        parts.append(f"samples {', '.join(map(str, tensor['samples']))}")
    return "  ".join(parts)


def _counts(tensor: Why) -> str:
    parts = [
        f"{tensor[key]} {word}"
        for key, word in (("nan", "nan"), ("posinf", "inf"), ("neginf", "-inf"))
        if tensor.get(key)
    ]
    return f"{', '.join(parts)} of {tensor['numel']}" if parts else ""


def _output_counts(first: Why) -> str:
    return next((text for t in first.get("outputs") or () if (text := _counts(t))), "")


def _sink_counts(sink: Why) -> str:
    counts = _counts(sink)
    return f" ({counts})" if counts else ""


def _kind_of_counts(sink: Why) -> str | None:
    if sink.get("nan"):
        return "nan"
    return "inf" if sink.get("posinf") or sink.get("neginf") else None


def _path_text(why: Why) -> str:
    texts = groupby(_entry_text(entry) for entry in why.get("path") or ())
    runs = [(text, len(list(group))) for text, group in texts]
    entries = [f"{text} x {count}" if count > 1 else text for text, count in runs]
    if len(entries) > _PATH_HEAD + _PATH_TAIL + 1:
        left_out = len(entries) - _PATH_HEAD - _PATH_TAIL
        entries = [*entries[:_PATH_HEAD], f"({left_out} more)", *entries[-_PATH_TAIL:]]
    if why.get("sink"):
        entries.append(sink_words(why["sink"]))
    hidden = why.get("hidden_by")
    if why.get("verdict") == "masked" and hidden and entries:
        frame = hidden.get("source")
        place = f" at {_short(frame['file'])}:{frame['line']}" if frame else ""
        return f"{entries[0]} -> removed by {display(hidden['op'])}{place}"
    return " -> ".join(entries) if len(entries) > 1 else ""


def _entry_text(entry: Why) -> str:
    if not entry.get("op"):
        return f"({entry['note']})"
    name, phase = display(entry["op"]), entry.get("phase")
    told = phase in ("backward", "optimizer") and phase not in name.lower()
    note = f" ({entry['note']})" if entry.get("note") else ""
    return f"{name}{f' {phase}' if told else ''}{note}"


def _data_text(data: Why | None) -> str:
    if not data:
        return ""
    parts = []
    if data.get("loader"):
        parts.append(str(data["loader"]))
    if data.get("batch_index") is not None:
        parts.append(f"batch {data['batch_index']}")
    if data.get("samples"):
        noun = "sample" if len(data["samples"]) == 1 else "samples"
        parts.append(f"{noun} {', '.join(map(str, data['samples']))} of the batch")
    if data.get("sample_indices"):
        parts.append(f"data set index {', '.join(map(str, data['sample_indices']))}")
    return ", ".join(parts)


def _sample_words(data: Why | None) -> str:
    text = _data_text(data)
    return f" ({text})" if text else ""


def _first_message(why: Why) -> str:
    findings = why.get("findings") or ()
    return str(findings[0].get("message") or "") if findings else ""


def _kind_word(kind: Any) -> str:
    return "Inf" if kind == "inf" else "NaN"


def _is_step(step: Any) -> bool:
    return isinstance(step, int) and step >= 0


def _short(file: str) -> str:
    """Return a path relative to the working directory where that is shorter."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return file


def _wrapped(
    label: str, text: str, paint: Paint, width: int, *, style: str | None = None
) -> list[str]:
    if not text:
        return []
    room = max(width - _LABEL - 2, 20)
    rows = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    head = "  " + paint(label, "dim") + " " * max(_LABEL - len(label), 1)
    painted = [paint(row, style) if style else row for row in rows]
    return [head + painted[0], *(" " * (_LABEL + 2) + row for row in painted[1:])]
