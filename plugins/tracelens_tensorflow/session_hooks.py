"""Wraps TF1's sessions while a recording lasts: every `Session.run` passes through one door.

`BaseSession._do_run` gets a run's fetches, targets and feeds resolved; `MonitoredSession`,
`Supervisor` and `InteractiveSession` come by there too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from tensorflow.python.client import session as tf_session

from tracelens_tensorflow.session_times import Timed

RunIt = Callable[..., list[Any]]
"""``run(extra=(), timed=None)``: runs what the program asked for, and fetches more besides."""

_Base = tf_session.BaseSession
_thread = threading.local()  # `busy` while the runs that pass through are ours


class Watcher(Protocol):
    """Who is told."""

    def watched(
        self,
        session: Any,
        targets: Sequence[Any],
        fetches: Sequence[Any],
        feeds: Any,
        run: RunIt,
    ) -> list[Any]:
        """Run what the program asked for and return its arrays."""

    def closing(self, session: Any) -> None:
        """A session is about to be closed."""

    def tell_once(self, message: str, severity: str = "info") -> None:
        """Write a note, unless it was written before."""


class Hooks:
    """The wrapping.

    Args:
        watcher: who is told of runs.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._original: dict[str, Any] = {}

    def install(self) -> None:
        """Wrap the sessions.

        Raises:
            AttributeError: this TensorFlow's sessions are built differently.
        """
        made = {
            "_do_run": self._do_run(_Base._do_run),
            "make_callable": self._make_callable(_Base.make_callable),
            "_make_callable_from_options": self._from_options(_Base._make_callable_from_options),
            "close": self._close(_Base.close),
        }
        for name, wrapped in made.items():
            self._original[name] = getattr(_Base, name)
            setattr(_Base, name, wrapped)

    def remove(self) -> None:
        """Take the wrapping off."""
        original, self._original = self._original, {}
        for name, function in original.items():
            setattr(_Base, name, function)

    def _do_run(self, do_run: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        watcher = self._watcher

        def _do_run(
            self: Any, handle: Any, targets: Any, fetches: Any, feeds: Any, options: Any, meta: Any
        ) -> list[Any]:
            def run(extra: Sequence[Any] = (), timed: Timed | None = None) -> list[Any]:
                wanted = [*fetches, *extra] if extra else fetches

                def do(options: Any, meta: Any) -> list[Any]:
                    return do_run(self, handle, targets, wanted, feeds, options, meta)

                if timed is None or options is not None or meta is not None:
                    return do(options, meta)
                return timed.run(do)

            if handle is not None:
                watcher.tell_once("partial_run is not checked: its parts are no step of their own")
                return run()
            if getattr(_thread, "busy", False):
                return run()
            return watcher.watched(self, targets, fetches, feeds, run)

        return _do_run

    def _make_callable(self, make_callable: Callable[..., Any]) -> Callable[..., Any]:
        hooks = self

        def made(
            self: Any, fetches: Any, feed_list: Any = None, accept_options: bool = False
        ) -> Any:
            original = make_callable(self, fetches, feed_list, accept_options)
            if feed_list is not None:
                return original  # it calls run

            def call(*args: Any, **kwargs: Any) -> Any:
                if not hooks._original:
                    return original(*args, **kwargs)
                return self.run(fetches, **kwargs)

            return call

        return made

    def _from_options(self, from_options: Callable[..., Any]) -> Callable[..., Any]:
        watcher = self._watcher

        def made(self: Any, callable_options: Any) -> Any:
            watcher.tell_once("callables made from CallableOptions are not checked")
            return from_options(self, callable_options)

        return made

    def _close(self, close: Callable[..., None]) -> Callable[..., None]:
        watcher = self._watcher

        def closing(self: Any) -> None:
            if not getattr(_thread, "busy", False):
                watcher.closing(self)
            close(self)

        return closing


@contextmanager
def ours() -> Iterator[None]:
    """Let runs of this thread pass unwatched."""
    before = getattr(_thread, "busy", False)
    _thread.busy = True
    try:
        yield
    finally:
        _thread.busy = before
