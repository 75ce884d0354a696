"""What the fixtures hand out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import tracelens as tl
from pytest_tracelens.wording import sentence
from tracelens.errors import NonFiniteError

if TYPE_CHECKING:
    from pytest_tracelens.watch import Watch
    from tracelens.loaded import Trace

Value = TypeVar("Value")


class TestTrace:
    """The recording of the running test.

    Args:
        watch: what watches it, ``None`` with ``--nan=off``.
    """

    __test__ = False

    def __init__(self, watch: Watch | None) -> None:
        self._watch = watch

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What was found so far and counts for this test, the first cause first."""
        return self._watch.findings if self._watch is not None else []

    @property
    def trace(self) -> Trace:
        """What was recorded so far.

        Raises:
            SessionError: nothing watches the test.
        """
        if self._watch is None:
            raise tl.SessionError("this test is not recorded: --nan=off")
        return tl.load(self._watch.write_so_far())

    def step(self, **scalars: Any) -> None:
        """Mark the end of a training step.

        Args:
            **scalars: numbers to keep beside it, such as ``loss=loss``.
        """
        tl.step(**scalars)


def assert_finite(value: Value, name: str | None = None) -> Value:
    """Fail the test if a value is not finite; return it otherwise.

    Args:
        value: a tensor, array or number, a model (its parameters), or a container of those.
        name: what to call it.
    """
    __tracebackhide__ = True
    for path, leaf in _leaves(value, name or "value"):
        told = _checked(leaf, path)
        if told:
            pytest.fail(told)
    return value


def _checked(leaf: Any, path: str) -> str:
    """Return what is wrong with a value, empty if nothing is."""
    try:
        tl.check(leaf, path)
    except NonFiniteError as error:
        if not error.report.get("first_cause"):
            return str(error)
        return f"{path} is not finite: {sentence(error.report, Path.cwd())}"
    return ""


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _leaves(part, f"{name}[{place}]")
    elif callable(getattr(value, "named_parameters", None)):
        for key, part in value.named_parameters():
            yield f"{name}.{key}", part
    elif hasattr(value, "trainable_variables"):
        for part in value.variables:
            yield f"{name}.{getattr(part, 'path', None) or part.name}", part
    else:
        yield name, value
