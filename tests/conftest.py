"""Shared by all tests: a clean environment, and no session left open."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# The toy framework is imported by tests that put it on the path, not collected for doctests.
collect_ignore = ["toy"]

# Tests share the machine's cores; one thread a process keeps them from slowing each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TRACELENS"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_session_left_open() -> Iterator[None]:
    yield
    from tracelens import session

    left = session.current()
    if left is not None and not left.background:  # pytest's own plugin may watch
        left.close(RuntimeError("the test left its session open"))
        pytest.fail(f"the test left a session open: {left.path}")
