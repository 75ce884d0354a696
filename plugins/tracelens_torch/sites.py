"""Interns where an op was issued: its name, the module, and the user's line."""

from __future__ import annotations

import sys
from types import CodeType
from typing import TYPE_CHECKING, Any

from tracelens_torch.frames import source_of

if TYPE_CHECKING:
    from tracelens.storage.writer import ShardWriter
    from tracelens_torch.modules import ModuleNames


class Sites:
    """Makes the ``site`` ids of a session.

    Args:
        writer: where they are interned.
        modules: names of modules.
    """

    def __init__(self, writer: ShardWriter, modules: ModuleNames) -> None:
        self._writer = writer
        self._modules = modules
        self._known: dict[int, dict[str, Any]] = {}

    def make(
        self,
        op: str,
        code: CodeType | None,
        lasti: int,
        module: Any,
        forward_site: int = 0,
        exact: int = 1,
    ) -> int:
        """Return the id of a site.

        Args:
            op: the op's name.
            code: code object of the user's frame, None if there is none.
            lasti: byte offset of the frame's instruction.
            module: the module being called, or None.
            forward_site: of a backward op without a frame of its own: its forward op's site.
            exact: 0 if the line is only the nearest known one.
        """
        site: dict[str, Any] = {"op": op}
        forward = self._known.get(forward_site)
        if forward is not None:
            site.update({key: value for key, value in forward.items() if key != "op"})
        else:
            if module is not None:
                site["module"] = self._modules.of(module, sys._getframe(1))
            if code is not None:
                site.update(source_of(code, lasti))
        if not exact:
            site["exact"] = False
        site_id = self._writer.intern("site", site)
        self._known[site_id] = site
        return site_id
