"""A thread that owns one reader of a trace and answers questions, so that the screen never waits.

DuckDB connections and mapped files belong to one thread; widgets belong to another. Questions go
in through a queue, answers come back as futures.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from tracelens.errors import TraceError, TraceLensError

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader

T = TypeVar("T")

_PATIENCE_S = 3.0


class ReaderThread:
    """Answers questions about one trace, one after the other, in a thread of its own.

    Args:
        path: the trace; opened in the thread at the first question.
        name: the thread's name.
        memory_limit_bytes: what DuckDB may use for this reader.
        whole_shards: as for ``open_trace``; without, the first answer comes sooner.
    """

    def __init__(
        self,
        path: str,
        name: str,
        memory_limit_bytes: int = 512 << 20,
        *,
        whole_shards: bool = True,
    ) -> None:
        self.path = path
        self._memory_limit_bytes = memory_limit_bytes
        self._whole_shards = whole_shards
        self._jobs: deque[tuple[Callable[[TraceReader], object], Future[object]]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, question: Callable[[TraceReader], T], *, urgent: bool = False) -> Future[T]:
        """Queue a question; an urgent one is asked before those that wait."""
        answer: Future[T] = Future()
        with self._wake:
            if urgent:
                self._jobs.appendleft((question, answer))  # type: ignore[arg-type]
            else:
                self._jobs.append((question, answer))  # type: ignore[arg-type]
            self._wake.notify()
        return answer

    async def ask(self, question: Callable[[TraceReader], T]) -> T:
        """Ask and wait for the answer without blocking the screen.

        Raises:
            TraceLensError: what the question raised, or, for a trace that changes or vanishes
                under its reader, what went wrong in one line.
        """
        return await self.answer(self.submit(question))

    async def answer(self, asked: Future[T]) -> T:
        """Wait for the answer to a question that was submitted; raises as ``ask`` does."""
        import asyncio

        try:
            return await asyncio.wrap_future(asked)
        except TraceLensError:
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise TraceError(f"{self.path} cannot be read: {reason}") from error

    def close(self) -> None:
        """Ask no more; the thread closes its reader and ends after what it is doing.

        It is waited for a moment: native code that still runs while Python shuts down aborts.
        """
        with self._wake:
            self._closed = True
            for _, answer in self._jobs:
                answer.cancel()
            self._jobs.clear()
            self._wake.notify()
        self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        # Imported here: the screen's thread has enough to import meanwhile.
        from tracelens.storage.reader import open_trace

        reader: TraceReader | None = None
        while True:
            with self._wake:
                while not self._jobs and not self._closed:
                    self._wake.wait()
                if self._closed:
                    break
                question, answer = self._jobs.popleft()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                if reader is None:
                    reader = open_trace(
                        self.path,
                        memory_limit_bytes=self._memory_limit_bytes,
                        whole_shards=self._whole_shards,
                    )
                result = question(reader)
            except BaseException as error:
                answer.set_exception(error)
            else:
                answer.set_result(result)
        if reader is not None:
            reader.close()
