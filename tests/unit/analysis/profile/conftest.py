from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The tests are imported one by one (importmode=importlib), so their shared builder needs a path.
sys.path.insert(0, str(Path(__file__).parent))

from profile_builder import ProfileBuilder


@pytest.fixture
def build() -> ProfileBuilder:
    return ProfileBuilder()


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where a test's trace goes."""
    yield tmp_path / "run.tltrace"
