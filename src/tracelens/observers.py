"""The backends of one session: started, asked, kept from harming the program, stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from tracelens import discovery
from tracelens.errors import NonFiniteError

if TYPE_CHECKING:
    from tracelens.backend import Backend
    from tracelens.sampling import Sampler
    from tracelens.session import Session


class Observers:
    """Every backend whose framework the program has imported, now or later.

    A backend that fails is noted in the trace, once for each of its methods, and the program
    goes on.

    Attributes:
        running: the backends that observe now.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._failed: set[tuple[str, str]] = set()
        self._watcher: discovery.ImportWatcher | None = None
        self._sampler: Sampler | None = None
        self.running: list[Backend] = []

    def start(self) -> None:
        """Start the backends of imported frameworks and wait for the others' imports."""
        later = []
        wanted = self._session.config.frameworks
        for framework in discovery.entry_points():
            if wanted is not None and framework not in wanted:
                continue
            if discovery.is_imported(framework):
                self._start(framework)
            else:
                later.append(framework)
        self._watcher = discovery.ImportWatcher(later, self._imported)
        self._watcher.install()
        if self._session.config.sample:
            from tracelens.sampling import Sampler

            self._sampler = Sampler(self._session)
            self._sampler.start()

    def stop(self) -> None:
        """Stop all of them, the last started first."""
        self._unwatch()
        if self._sampler is not None:
            self._sampler.stop()
        for backend in reversed(self.running):
            self._ask(backend, "stop")

    def abandon(self) -> None:
        """In a forked child: take every hook off and write nothing."""
        self._unwatch()
        if self._sampler is not None:
            self._sampler.abandon()
        for backend in self.running:
            try:
                # `stop` may report what it saw last, into a ring that is the parent's.
                getattr(backend, "abandon", backend.stop)()
            except Exception:
                continue

    def renew(self) -> None:
        """A new window begins: what was told before is news again.

        A backend that remembers what it told may have a method ``renew()``.
        """
        for backend in self.running:
            if hasattr(backend, "renew"):
                self._ask(backend, "renew")

    def begin_step(self, step: int) -> None:
        """A step begins."""
        active = self._session.config.is_active(step)
        for backend in self.running:
            self._ask(backend, "begin_step", step, active=active)
        if self._sampler is not None:
            self._sampler.begin_step(step)

    def end_step(self, step: int) -> dict[str, Any]:
        """A step ended; return the scalars that backends have for it."""
        scalars: dict[str, Any] = {}
        hits = 0.0
        for backend in self.running:
            told = self._ask(backend, "end_step", step) or {}
            hits += told.pop("hits", 0)  # each backend counts its own
            scalars.update(told)
        return {"hits": hits, **scalars} if hits else scalars

    def after_step(self, step: int) -> None:
        """The step's time is taken: what takes long can be done now.

        A backend may have a method ``after_step(step)``; it runs between two steps.
        """
        for backend in self.running:
            if hasattr(backend, "after_step"):
                self._ask(backend, "after_step", step)
        if self._sampler is not None:
            self._sampler.after_step(step)

    def step_failed(self, error: BaseException) -> None:
        """An exception of the program leaves the running step."""
        for backend in self.running:
            self._ask(backend, "step_failed", error)

    def wrap_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a decorated call should run, so that a bad step can be replayed."""
        for backend in self.running:
            function = self._ask(backend, "wrap_step", function) or function
        return function if self._sampler is None else self._sampler.tagged(function)

    def offer(self, method: str, value: Any, name: str) -> bool:
        """Give a value to the backend whose framework it belongs to; False if there is none.

        Args:
            method: ``"tap"``, ``"watch"`` or ``"check"``.
            value: a tensor or model.
            name: what to call it.
        """
        return any(self._ask(backend, method, value, name) for backend in self.running)

    def fingerprint(self, model: Any, name: str, every: int) -> None:
        """Have the backend that a model belongs to compare its parameters between ranks.

        A backend may have a method ``fingerprint(model, name, every)``, false for foreign models.
        """
        for backend in self.running:
            if hasattr(backend, "fingerprint"):
                self._ask(backend, "fingerprint", model, name, every)

    def look(self, value: Any) -> dict[str, Any] | None:
        """Return the fields of a value's sink if it holds a NaN or an Inf, ``{}`` if it is finite.

        A backend may have a method ``look(value)`` that does this for its framework's tensors;
        ``None`` for what belongs to no backend.
        """
        for backend in self.running:
            if hasattr(backend, "look"):
                fields: dict[str, Any] | None = self._ask(backend, "look", value)
                if fields is not None:
                    return fields
        return None

    def number(self, value: Any, name: str) -> float | None:
        """Return a scalar as a number, ``None`` if it is not one.

        A backend may have a method ``number(value, name)`` that reads its framework's tensors
        without taking the read for the program's own.
        """
        if type(value) in (float, int):
            return float(value)
        for backend in self.running:
            if hasattr(backend, "number"):
                number: float | None = self._ask(backend, "number", value, name)
                if number is not None:
                    return number
        try:
            return float(value)
        except Exception:
            return None

    @contextmanager
    def muted(self) -> Iterator[None]:
        """What this thread does meanwhile is the debugger's, not the program's.

        A backend may have a method ``muted()`` that returns a context in which it observes nothing
        of this thread.
        """
        with ExitStack() as stack:
            for backend in self.running:
                muted = self._ask(backend, "muted") if hasattr(backend, "muted") else None
                if muted is not None:
                    stack.enter_context(muted)
            yield

    def _ask(self, backend: Backend, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(backend, method)(*args, **kwargs)
        except NonFiniteError:
            raise
        except Exception as error:
            if (backend.name, method) not in self._failed:
                self._failed.add((backend.name, method))
                self._session.note(
                    "hook_failed",
                    f"{backend.name}: {method} failed: {type(error).__name__}: {error}",
                    severity="error",
                )
            return None

    def _start(self, framework: str) -> Backend | None:
        try:
            backend = discovery.load(framework)
            backend.start(self._session)
        except Exception as error:
            self._session.note(
                "hook_failed",
                f"the {framework} backend did not start: {type(error).__name__}: {error}",
                severity="error",
            )
            return None
        self.running.append(backend)
        self._session.writer.add_framework(framework)
        return backend

    def _imported(self, framework: str) -> None:
        backend = self._start(framework)
        session = self._session
        if backend is not None and session.in_step:
            session.framework_imported()
            step = session.current_step
            self._ask(backend, "begin_step", step, active=session.config.is_active(step))

    def _unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.remove()
