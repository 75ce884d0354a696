"""Screens by name; each module is imported when its screen is first shown."""

from __future__ import annotations

from importlib import import_module

from textual.screen import Screen

_CLASSES = {
    "runs": "RunsScreen",
    "ops": "OpsScreen",
    "modules": "ModulesScreen",
    "tensor": "TensorScreen",
    "timeline": "TimelineScreen",
    "findings": "FindingsScreen",
    "compare": "CompareScreen",
    "profile": "ProfileScreen",
}

SCREEN_NAMES = tuple(_CLASSES)


def make_screen(name: str) -> Screen[None]:
    """Make a screen.

    Raises:
        KeyError: there is none of that name.
    """
    module = import_module(f"tracelens_tui.screens.{name}")
    screen: Screen[None] = getattr(module, _CLASSES[name])()
    return screen
