"""Following a trace that is still being written, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tracelens.errors import TraceLensError
from tracelens.storage.tail import News, Tail

_INTERVAL_S = 0.2
"""How often news is looked for: well below the second within which it should show."""

_MAX_OPS = 400


class Follower:
    """Polls a trace and hands on what is new, until every writer has ended.

    Args:
        path: the trace.
        tell: called from the thread with news; ``News.ended`` is the last.
    """

    def __init__(self, path: str, tell: Callable[[News], object]) -> None:
        self._path = path
        self._tell = tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracelens-follow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Follow no more."""
        self._stop.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        try:
            tail = Tail(self._path, from_start=True)
        except TraceLensError:
            return
        try:
            while not self._stop.wait(_INTERVAL_S):
                try:
                    news = tail.poll(_MAX_OPS)
                except TraceLensError:
                    continue
                if news.ops or news.events or news.skipped or news.missed or news.ended:
                    self._tell(news)
        finally:
            tail.close()
