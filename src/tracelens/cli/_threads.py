"""Waits for a program's threads, which the interpreter would do before it exits."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import Any

_POLL_S = 0.05


def join_threads() -> None:
    """Wait until the program's threads have ended, and its thread pools have nothing to do.

    The threads of a `ThreadPoolExecutor` that is never shut down end only while the interpreter
    exits: to join them here would wait for ever.
    """
    queues = _pools()
    me: Any = threading.current_thread()
    for thread in threading.enumerate():
        if thread is not me and not thread.daemon and thread not in queues:
            thread.join()
    by_queue: dict[int, tuple[Any, list[threading.Thread]]] = {}
    for thread, queue in queues.items():
        by_queue.setdefault(id(queue), (queue, []))[1].append(thread)
    for queue, threads in by_queue.values():
        _wait_until_idle(queue, threads)


def _pools() -> dict[threading.Thread, Any]:
    """Return the queue from which each pool's thread takes its work."""
    pools = sys.modules.get("concurrent.futures.thread")
    return dict(getattr(pools, "_threads_queues", {}))


def _wait_until_idle(queue: Any, threads: Iterable[threading.Thread]) -> None:
    """Queue one last item a thread; when all of them hold one, none works any more."""
    workers = [thread for thread in threads if thread.is_alive()]
    last = _Last(len(workers))
    for _ in workers:
        queue.put(last)
    while not last.reached.wait(_POLL_S) and all(thread.is_alive() for thread in workers):
        pass
    last.barrier.abort()


class _Last:
    """A work item that holds its thread until every thread of the pool has one."""

    def __init__(self, parties: int) -> None:
        self.reached = threading.Event()
        self.barrier = threading.Barrier(max(1, parties), action=self.reached.set)
        if not parties:
            self.reached.set()

    def run(self) -> None:
        """Called by the pool's thread."""
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError:
            return
