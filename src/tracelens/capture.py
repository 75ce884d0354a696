"""Taking the terminal back from a test runner that captures it."""

from __future__ import annotations

import sys
from collections.abc import Callable


def released() -> Callable[[], None] | None:
    """Give the terminal to a prompt; returns what captures it again, ``None`` if nobody did.

    pytest replaces stdin, stdout and stderr while a test runs; its own ``--pdb`` asks the same
    plugin.
    """
    module = sys.modules.get("_pytest.debugging")
    manager = getattr(getattr(module, "pytestPDB", None), "_pluginmanager", None)
    capture = manager.getplugin("capturemanager") if manager is not None else None
    if capture is None or not capture.is_capturing():
        return None
    capture.suspend(in_=True)
    resume: Callable[[], None] = capture.resume
    return resume
