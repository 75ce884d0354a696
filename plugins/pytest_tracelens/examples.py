"""Tests that hypothesis runs many times: each example is judged by itself."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Failure = Callable[[], None]


def has_examples(item: pytest.Item) -> bool:
    """Tell whether hypothesis runs the test."""
    return bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))


@contextlib.contextmanager
def wrapped(
    item: pytest.Item,
    begin: Callable[[], None],
    judge: Callable[[pytest.Item], Failure | None],
) -> Iterator[None]:
    """Have each example begun and judged while the context lasts.

    An example fails inside of hypothesis, which then looks for the smallest one that does.

    Args:
        item: a test with examples.
        begin: called before each example.
        judge: called after each that went through; what it returns fails the example.
    """
    handle: Any = item.obj.hypothesis  # type: ignore[attr-defined]
    inner = handle.inner_test

    def judged() -> None:
        __tracebackhide__ = True
        failure = judge(item)
        if failure is not None:
            failure()

    if inspect.iscoroutinefunction(inner):

        @functools.wraps(inner)
        async def example(*args: Any, **kwargs: Any) -> Any:
            begin()
            result = await inner(*args, **kwargs)
            judged()
            return result

    else:

        @functools.wraps(inner)
        def example(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            begin()
            result = inner(*args, **kwargs)
            judged()
            return result

    handle.inner_test = example
    try:
        yield
    finally:
        if handle.inner_test is example:
            handle.inner_test = inner
