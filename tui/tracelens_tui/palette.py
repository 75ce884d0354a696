"""The command palette (ctrl+p): every command of the table and every key of the screens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.types import IgnoreReturnCallbackType

from tracelens_tui import keymap

if TYPE_CHECKING:
    from tracelens_tui.app import TraceLensApp


class CommandPalette(Provider):
    """Offers what the keys do, by name."""

    async def discover(self) -> Hits:
        """Offer everything."""
        for title, help_text, run in self._all():
            yield DiscoveryHit(title, run, help=help_text)

    async def search(self, query: str) -> Hits:
        """Offer what matches."""
        matcher = self.matcher(query)
        for title, help_text, run in self._all():
            score = max(matcher.match(title), matcher.match(help_text) * 0.8)
            if score > 0:
                yield Hit(score, matcher.highlight(title), run, help=help_text)

    def _all(self) -> Iterator[tuple[str, str, IgnoreReturnCallbackType]]:
        app = cast("TraceLensApp", self.app)
        for key in keymap.all_keys():
            title = f"{key.id}  {key.shown}" if key.keys else key.id
            yield title, key.help, partial(app.run_action, key.action)
        for name in sorted(app.available_themes):
            yield f"theme {name}", "change the colours", partial(setattr, app, "theme", name)
