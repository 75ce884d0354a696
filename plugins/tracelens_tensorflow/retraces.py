"""A finding for each time a function is traced again: what changed, where, and what it cost."""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensorflow.python.eager.polymorphic_function import tracing_compilation
from tensorflow.python.util import tf_decorator

from tracelens.userframes import source_keys
from tracelens_tensorflow import sources
from tracelens_tensorflow.signatures import Change, changes, weight
from tracelens_tensorflow.sources import USER_FILES

if TYPE_CHECKING:
    from tracelens.session import Session

_TOLD_PER_FUNCTION = 20
"""Further retraces of a function are counted and told together at the end."""

_WARNED_FROM = 3
"""A second trace is often meant (training and not, a last small batch); a third seldom is."""

_ADVICE = {
    "dtype": "cast the argument to one dtype before the call",
    "value": "pass a tensor (tf.constant) instead of the Python value, which is part of the "
    "signature: every new value is traced",
    "object": "pass the same object each time, or let the function read it from outside its "
    "arguments",
    "structure": "pass the same keys and number of elements each time",
    "type": "pass the same kind of argument each time",
    "again": "make the tf.function once, outside of the loop or function that calls it",
    "context": "call it in one context: the same device scope, strategy and enclosing graph",
}


def install(session: Session) -> Callable[[], None]:
    """Begin to tell retraces to a session; the result, called, ends it.

    Args:
        session: the recording.
    """
    return _Watch(session).install()


@contextmanager
def quiet() -> Iterator[None]:
    """Let this thread trace functions again without a finding: TraceLens wants it so."""
    before, _muted.on = _muted.on, True
    try:
        yield
    finally:
        _muted.on = before


class _Muted(threading.local):
    on = False


_muted = _Muted()


@dataclass
class _History:
    """The traces of one piece of Python code.

    Attributes:
        traces: how often it was traced under this session.
        latest: the signature of its latest trace.
        owner: the object it is a method of.
        untold: retraces that were only counted.
    """

    traces: int = 0
    latest: Any = None
    owner: Any = None
    untold: int = 0


class _Watch:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._histories: weakref.WeakKeyDictionary[Any, _History] = weakref.WeakKeyDictionary()
        self._failed = False

    def install(self) -> Callable[[], None]:
        original = tracing_compilation._create_concrete_function
        watch = self

        @functools.wraps(original)
        def create(function_type: Any, type_context: Any, func_graph: Any, options: Any) -> Any:
            earlier = watch._earlier(options)  # before: the trace itself is added later
            started = time.perf_counter()
            made = original(function_type, type_context, func_graph, options)
            if not _muted.on:
                seconds = time.perf_counter() - started
                watch._traced(function_type, earlier, options, made, seconds)
            return made

        tracing_compilation._create_concrete_function = create

        def uninstall() -> None:
            if tracing_compilation._create_concrete_function is create:
                tracing_compilation._create_concrete_function = original
            watch._tell_untold()

        return uninstall

    def _earlier(self, options: Any) -> list[Any] | None:
        """Return the signatures that the function was traced with before, in order.

        ``None`` if this trace repeats the one that created the function's variables.
        """
        known = list(getattr(options.function_cache, "_primary", None) or ())
        earlier = [kind for context, kind in known if context.scope_type is options.scope_type]
        return None if known and not earlier else earlier

    def _traced(
        self, new: Any, earlier: list[Any] | None, options: Any, made: Any, seconds: float
    ) -> None:
        if earlier is None:
            return
        try:
            self._compare(new, earlier, options, made, seconds)
        except Exception as error:
            if not self._failed:
                self._failed = True
                self._session.note("hook_failed", f"a retrace was not explained: {error!r}")

    def _compare(
        self, new: Any, earlier: list[Any], options: Any, made: Any, seconds: float
    ) -> None:
        function = _user_function(options.python_function)
        code = getattr(function, "__code__", None)
        if code is None:
            return
        history = self._histories.setdefault(code, _History())
        owner = getattr(function, "__self__", None)
        owner = getattr(owner, "target", owner)  # of a method, TensorFlow keeps a stand-in
        same_owner = history.owner is not None and history.owner() is owner
        remade = not earlier and history.traces > 0 and USER_FILES.owns(code.co_filename)
        if remade and owner is not None and not same_owner:
            remade = False
        count = len(earlier) + 1 if earlier else history.traces + 1 if remade else 1
        before = earlier or ([history.latest] if remade else [])
        history.traces = max(history.traces + 1, count)
        history.latest = new
        history.owner = None if owner is None else weakref.ref(owner)
        if not before:
            return
        if history.traces > _TOLD_PER_FUNCTION:
            history.untold += 1
            return
        nearest = min((changes(new, old) for old in reversed(before)), key=weight)
        self._tell(function, options, nearest, count, made, seconds, remade=remade)

    def _tell(
        self, function: Any, options: Any, found: list[Change], count: int, made: Any,
        seconds: float, *, remade: bool,
    ) -> None:  # fmt: skip
        name = _name(function)
        if found:
            cause = "; ".join(change.sentence for change in found[:3])
            kinds = [change.kind for change in found]
        elif remade:
            cause = "a new tf.function was made of the same Python function"
            kinds = ["again"]
        else:
            cause, kinds = "it is called in another context than before", ["context"]
        operations = int(made.graph.num_operations())
        source = sources.calling_line()
        meant = _is_data(options) or _takes_more(found)
        cost = f"trace {count}, {_seconds(seconds)}, {operations} ops"
        self._session.report_finding(
            "retrace",
            f"{name} was traced again{sources.words(source)} ({cost}): {cause}",
            severity="info" if meant or count < _WARNED_FROM else "warning",
            advice=_advice(found, kinds, options),
            function=name,
            traces=count,
            duration_ns=int(seconds * 1e9),
            n_ops=operations,
            changes=[
                {"kind": each.kind, "argument": each.name, "was": each.was, "now": each.now}
                for each in found
            ],
            **({} if source is None else {"source": source_keys(source)}),
        )

    def _tell_untold(self) -> None:
        for code, history in list(self._histories.items()):
            if history.untold:
                self._session.note(
                    "retrace",
                    f"{code.co_name} was traced {history.untold} more times than are listed",
                    "warning",
                )


def _advice(found: list[Change], kinds: list[str], options: Any) -> str:
    if not found and _is_data(options):
        return "build the dataset once, and use it again"
    if _takes_more(found):
        return (
            "nothing, this trace takes every size; to save it use sizes that divide the data, or "
            "drop_remainder=True"
        )
    specs = [change for change in found if change.spec]
    if kinds[0] == "shape" and specs:
        return (
            f"give {specs[0].name} one shape (pad it, or drop_remainder=True), or let one trace "
            f"take both: @tf.function(reduce_retracing=True), or input_signature with "
            f"{specs[0].spec}"
        )
    return _ADVICE[kinds[0]]


def _is_data(options: Any) -> bool:
    return "_tf_data_function" in (options.attributes or {})


def _takes_more(found: list[Change]) -> bool:
    """Tell whether the new trace was made so general that it also serves what the old one did."""
    return bool(found) and all(each.kind == "shape" and "None" in each.now for each in found)


def _name(function: Any) -> str:
    """Return what to call a function: by its library if it is not the user's."""
    code = function.__code__
    if USER_FILES.owns(code.co_filename):
        return str(getattr(function, "__qualname__", code.co_name)).replace("<locals>.", "")
    package = str(getattr(function, "__module__", "")).partition(".")[0]
    name = str(getattr(function, "__name__", code.co_name))
    return f"{package}'s {name}" if package else name


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _user_function(function: Any) -> Any:
    """Return the Python function that was traced, without TensorFlow's wrappings."""
    function = tf_decorator.unwrap(function)[1]
    for cell in getattr(function, "__closure__", None) or ():
        helper = cell.cell_contents
        if getattr(helper, "__name__", "") == "wrapper_helper":
            for inner in helper.__closure__ or ():
                wrapped = getattr(inner.cell_contents, "_func", None)
                if callable(wrapped):
                    return wrapped
    return function
