"""The words of a failure: one sentence, the causal report, the command that opens the trace."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_tracelens.policy import relative
from tracelens.analysis.report import render

_KINDS = (("nan", "NaN"), ("posinf", "Inf"), ("neginf", "-Inf"))


def sentence(finding: Mapping[str, Any], root: Path, *, when: str = "") -> str:
    """Return a finding in one sentence.

    Args:
        finding: as ``cause.explain`` makes it.
        root: where pytest's paths begin.
        when: when in the test it came up.
    """
    first = finding.get("first_cause")
    if not first:
        return str(finding.get("message") or "a non-finite value was computed")
    frame = first.get("source")
    place = "at an unknown line"
    if frame:
        place = f"at {relative(Path(frame['file']), root)}:{frame['line']}"
    origin = first.get("origin")
    what = _counts(first, origin)
    if origin in ("data", "outside"):
        text = f"{what} came in with the data, read by {first['op']} {place}"
    elif origin == "parameter":
        text = f"{what} was already in a parameter, read by {first['op']} {place}"
    else:
        text = f"{first['op']} produced {what} {place}"
    if first.get("module"):
        text += f" in {first['module']}"
    if first.get("phase") in ("backward", "optimizer"):
        text += f" ({first['phase']})"
    return f"{text}, {when}" if when else text


def report(finding: Mapping[str, Any], command: str, remarks: list[str]) -> str:
    """Return the text of the report's section.

    Args:
        finding: what was found first.
        command: what opens the trace, empty if there is none.
        remarks: further lines.
    """
    lines = [render(finding), *remarks]
    if command:
        lines.append(f"open it: {command}")
    return "\n".join(lines)


def _counts(first: Mapping[str, Any], origin: object) -> str:
    """Write how many elements were bad: ``3 NaN (of 8)``."""
    tensors = first.get("inputs" if origin in ("data", "outside", "parameter") else "outputs") or ()
    for tensor in (*tensors, *(first.get("outputs") or ())):
        counts = [f"{tensor[key]} {word}" for key, word in _KINDS if tensor.get(key)]
        if counts:
            return f"{' and '.join(counts)} (of {tensor['numel']})"
    return "NaN" if first.get("kind") == "nan" else "Inf"
