"""The decorator side of ``tl.trace``: one call of the function is one step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any

from tracelens.session import Session

OpenSession = Callable[[], "Session | None"]


def decorate(function: Callable[..., Any], get_session: OpenSession) -> Callable[..., Any]:
    """Return ``function`` wrapped so that each call is one step of the process's session.

    Coroutines, generators and asynchronous generators stay what they are; the step of a
    generator lasts from its first item to its end. Exceptions pass unchanged.

    Args:
        function: any callable that can carry a name; a method or plain function.
        get_session: returns the open session, or ``None`` if nothing can be recorded.
    """
    if inspect.iscoroutinefunction(function):
        return _coroutine(function, get_session)
    if inspect.isasyncgenfunction(function):
        return _async_generator(function, get_session)
    if inspect.isgeneratorfunction(function):
        return _generator(function, get_session)
    return _plain(function, get_session)


def _plain(function: Callable[..., Any], get_session: OpenSession) -> Callable[..., Any]:
    prepared: tuple[Session | None, int, Callable[..., Any]] = (None, 0, function)

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal prepared
        session = get_session()
        if session is None:
            return function(*args, **kwargs)
        backends = len(session.backends)
        if prepared[0] is not session or prepared[1] != backends:
            prepared = (session, backends, session.wrap(function))
        session.begin_call()
        try:
            result = prepared[2](*args, **kwargs)
        except BaseException as error:
            session.end_call(error)
            raise
        session.end_call()
        return result

    return traced


def _coroutine(
    function: Callable[..., Coroutine[Any, Any, Any]], get_session: OpenSession
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def traced(*args: Any, **kwargs: Any) -> Any:
        session = get_session()
        if session is None:
            return await function(*args, **kwargs)
        session.begin_call()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            session.end_call(error)
            raise
        session.end_call()
        return result

    return traced


def _generator(
    function: Callable[..., Generator[Any, Any, Any]], get_session: OpenSession
) -> Callable[..., Any]:
    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        session = get_session()
        if session is None:
            return (yield from function(*args, **kwargs))
        session.begin_call()
        try:
            result = yield from function(*args, **kwargs)
        except BaseException as error:
            session.end_call(error)
            raise
        session.end_call()
        return result

    return traced


def _async_generator(
    function: Callable[..., AsyncGenerator[Any, Any]], get_session: OpenSession
) -> Callable[..., Any]:
    @functools.wraps(function)
    async def traced(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        session = get_session()
        items = function(*args, **kwargs)
        if session is not None:
            session.begin_call()
        try:
            # asend/athrow are passed on by hand: `yield from` does not exist for these.
            sent = await items.__anext__()
            while True:
                try:
                    received = yield sent
                except GeneratorExit:
                    await items.aclose()
                    raise
                except BaseException as thrown:
                    sent = await items.athrow(thrown)
                else:
                    sent = await items.asend(received)
        except StopAsyncIteration:
            if session is not None:
                session.end_call()
        except BaseException as error:
            if session is not None:
                session.end_call(error)
            raise

    return traced
