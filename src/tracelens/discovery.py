"""Finds the backends of installed frameworks and starts one when its framework is imported.

No framework is ever imported from here: a backend is loaded only once its framework is in
``sys.modules``, or right after the program itself imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tracelens.backend import ENTRY_POINT_GROUP

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from tracelens.backend import Backend


@lru_cache(maxsize=1)
def entry_points() -> dict[str, EntryPoint]:
    """Return the installed backends' entry points by framework name, none of them loaded."""
    from importlib import metadata

    return {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}


def load(framework: str) -> Backend:
    """Return a new backend of a framework, not started.

    Raises:
        KeyError: no backend is installed for this framework.
        Exception: whatever importing or constructing the backend raised.
    """
    backend: Backend = entry_points()[framework].load()()
    return backend


def is_imported(framework: str) -> bool:
    """Whether a framework has been imported completely."""
    module = sys.modules.get(framework)
    if module is None:
        return False
    return not getattr(getattr(module, "__spec__", None), "_initializing", False)


class ImportWatcher:
    """Calls ``on_import(name)`` right after one of ``names`` was imported by the program.

    It finds nothing itself: it asks the other finders, and only for the watched names wraps
    that one loader's ``exec_module``, which it restores before the module runs. (It is a
    ``MetaPathFinder`` by its methods only: importing ``importlib.abc`` costs 9 ms.)
    """

    def __init__(self, names: Sequence[str], on_import: Callable[[str], None]) -> None:
        self._names = set(names)
        self._on_import = on_import
        self._busy: set[str] = set()

    def install(self) -> None:
        """Start to watch."""
        if self._names and self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Stop watching and leave the import system as it was found."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the spec that the other finders give, with its loader wrapped once."""
        if fullname not in self._names or fullname in self._busy:
            return None
        self._busy.add(fullname)
        try:
            spec = _find_elsewhere(self, fullname, path, target)
        finally:
            self._busy.discard(fullname)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._wrap(spec.loader, fullname)
        return spec

    def _wrap(self, loader: Any, fullname: str) -> None:
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)  # another watcher may have taken it off
            original(module)
            if self in sys.meta_path:
                self._on_import(fullname)

        loader.exec_module = exec_module


def _find_elsewhere(
    watcher: ImportWatcher,
    fullname: str,
    path: Sequence[str] | None,
    target: ModuleType | None,
) -> ModuleSpec | None:
    for finder in sys.meta_path:
        if finder is watcher or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(fullname, path, target)
        if spec is not None:
            return spec
    return None
