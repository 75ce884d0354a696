"""What a recording of a training holds, for tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracelens.storage.reader import open_trace


class Recorded:
    """A closed trace, read once."""

    def __init__(self, path: Path) -> None:
        with open_trace(path) as reader:
            self.steps = reader.steps()
            self.findings = reader.findings()
            self.notes = reader.notes()

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [finding for finding in self.findings if finding["severity"] == "error"]

    @property
    def failures(self) -> list[str]:
        return [note["message"] for note in self.notes if note["kind"] == "hook_failed"]

    def numbers(self) -> list[int]:
        return [step["step"] for step in self.steps]

    def scalar(self, name: str) -> list[float | None]:
        return [step["scalars"].get(name) for step in self.steps]


def line_of(thing: Callable[..., Any] | type, text: str = "# here") -> int:
    """Return the number of the line of a function or class that holds a text."""
    lines, first = inspect.getsourcelines(thing)
    return next(first + at for at, line in enumerate(lines) if text in line)


def place_of(finding: dict[str, Any]) -> tuple[str, int]:
    """Return the name of the file and the line that a finding blames."""
    source = finding["first_cause"]["source"]
    return Path(source["file"]).name, source["line"]


def same_weights(first: Any, second: Any) -> bool:
    """Tell whether two torch models hold the same bits."""
    import torch

    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
