"""Runs a program the way ``python`` does: a script, ``-m module`` or ``-c code``.

The program sees what it would see without us (``sys.argv``, ``sys.path``, ``__main__``), and its
uncaught exceptions are shown without frames of TraceLens.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import io
import os
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, TracebackType

from tracelens.cli._threads import join_threads
from tracelens.errors import EXIT_INTERRUPTED, EXIT_OK, TraceLensError

_OWN_MODULE = re.compile(r"tracelens(_\w+)?(\.|$)")
_CRASHED = 1


class ProgramError(TraceLensError):
    """What was named cannot be run as a Python program."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        exit_code: what ``python`` would have exited with (130 for Ctrl-C).
        error: the exception that ended it, if any.
    """

    exit_code: int
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """A program ready to run.

    Attributes:
        kind: ``"script"``, ``"module"`` or ``"code"``.
        target: the path, the module's name, or the code.
        arguments: what follows it.
    """

    kind: str
    target: str
    arguments: tuple[str, ...]

    @property
    def label(self) -> str:
        """A word to name a trace after."""
        if self.kind == "code":
            return "code"
        return Path(self.target).stem if self.kind == "script" else self.target

    def check(self) -> None:
        """Look at the target without running anything.

        Raises:
            ProgramError: there is no such script or module, or it is not a Python program.
        """
        if self.kind == "script":
            _check_script(Path(self.target))
        elif self.kind == "module":
            _set_first_path(str(Path.cwd()))
            package = self.target.partition(".")[0]
            if not package or importlib.util.find_spec(package) is None:
                raise ProgramError(f"no module named {self.target} can be run")

    def run(self) -> Outcome:
        """Run it in this process as ``__main__`` and wait for its threads."""
        pid = os.getpid()
        own_main = sys.modules["__main__"]
        try:
            try:
                code = self._prepare()
                exec(code, sys.modules["__main__"].__dict__)
            finally:
                if os.getpid() == pid:
                    sys.stdout.flush()
            outcome = Outcome(EXIT_OK)
        except SystemExit as leave:
            outcome = Outcome(_exit_code(leave), leave if leave.code else None)
        except KeyboardInterrupt as interrupt:
            _show(interrupt)
            outcome = Outcome(EXIT_INTERRUPTED, interrupt)
        except BaseException as error:
            _show(error)
            outcome = Outcome(_CRASHED, error)
        if os.getpid() == pid:
            with contextlib.suppress(KeyboardInterrupt):
                join_threads()
        # The module stays alive (and in sys.modules): atexit functions of the program use it.
        _keep.append(own_main)
        return outcome

    def _prepare(self) -> CodeType:
        main = types.ModuleType("__main__")
        main.__dict__["__builtins__"] = __builtins__
        if sys.version_info < (3, 14):
            main.__annotations__ = {}
        if self.kind == "code":
            code = compile(self.target, "<string>", "exec", dont_inherit=True)
            argv0, folder = "-c", ""
        elif self.kind == "module":
            folder = str(Path.cwd())
            _set_first_path(folder)
            spec, code = _find_module(self.target)
            argv0 = str(spec.origin)
            main.__spec__, main.__loader__ = spec, spec.loader
            main.__package__ = spec.parent
            main.__file__ = spec.origin
            main.__dict__["__cached__"] = spec.cached
        else:
            argv0 = self.target
            path = Path(self.target)
            if path.is_dir() or path.suffix in (".zip", ".pyz"):
                folder = argv0
                _set_first_path(folder)
                code = _folder_code(argv0, main)
            else:
                folder = str(path.resolve().parent)
                main.__file__ = str(path.absolute())
                main.__dict__["__cached__"] = None
                main.__loader__ = importlib.machinery.SourceFileLoader("__main__", main.__file__)
                code = _script_code(main.__file__)
        _set_first_path(folder)
        sys.argv[:] = [argv0, *self.arguments]
        sys.modules["__main__"] = main
        return code


_keep: list[types.ModuleType] = []
_first_path_is_ours = not getattr(sys.flags, "safe_path", False)


def _set_first_path(folder: str) -> None:
    """Put a folder where ``python`` puts the script's, in place of our own command's."""
    if _first_path_is_ours and sys.path:
        sys.path[0] = folder


def _check_script(path: Path) -> None:
    if path.is_dir():
        if not (path / "__main__.py").exists():
            raise ProgramError(f"{path} is a directory without __main__.py")
        return
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise ProgramError(f"there is no script {path}") from None
    except OSError as error:
        raise ProgramError(f"cannot read {path}: {error.strerror}") from None
    if path.suffix in (".zip", ".pyz", ".pyc") or head.startswith(b"PK\x03\x04"):
        return
    first = head.partition(b"\n")[0]
    if b"\0" in head or (first.startswith(b"#!") and b"python" not in first):
        raise ProgramError(f"{path} is not a Python program; give a script, -m module or -c code")


def _script_code(path: str) -> CodeType:
    if path.endswith(".pyc"):
        code = importlib.machinery.SourcelessFileLoader("__main__", path).get_code("__main__")
        assert code is not None
        return code
    with io.open_code(path) as file:
        return compile(file.read(), path, "exec", dont_inherit=True)


def _folder_code(folder: str, main: types.ModuleType) -> CodeType:
    spec = importlib.machinery.PathFinder.find_spec("__main__", [folder])
    code = getattr(spec and spec.loader, "get_code", lambda name: None)("__main__")
    if spec is None or code is None:
        raise ImportError(f"can't find '__main__' module in {folder!r}")
    main.__spec__, main.__loader__, main.__file__ = spec, spec.loader, str(spec.origin)
    main.__package__ = ""
    return code  # type: ignore[no-any-return]


def _find_module(name: str) -> tuple[importlib.machinery.ModuleSpec, CodeType]:
    """Return the spec and code that ``python -m name`` runs.

    Raises:
        ProgramError: there is no such module, or it cannot be run.
    """
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if not (error.name and name.startswith(error.name)):
            raise
        spec = None
    except ValueError:
        spec = None
    if spec is None:
        raise ProgramError(f"no module named {name} can be run")
    code = getattr(spec.loader, "get_code", lambda name: None)(name)
    if code is None:
        raise ProgramError(f"{name} has no Python code to run")
    return spec, code


def _exit_code(leave: SystemExit) -> int:
    if leave.code is None:
        return EXIT_OK
    if isinstance(leave.code, int):
        return leave.code
    sys.stdout.flush()
    print(leave.code, file=sys.stderr)
    return 1


def _show(error: BaseException) -> None:
    """Report an uncaught exception through ``sys.excepthook``, as the interpreter does."""
    if isinstance(error, ProgramError):
        raise error
    _strip_chain(error)
    if sys.version_info >= (3, 12):
        sys.last_exc = error
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    sys.excepthook(type(error), error, error.__traceback__)


def _strip_chain(error: BaseException) -> None:
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = without_own_frames(one.__traceback__)
        waiting += [e for e in (one.__cause__, one.__context__) if e is not None]
        waiting += list(getattr(one, "exceptions", ()))


def without_own_frames(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback that starts in the program and leaves out TraceLens's own frames."""
    kept: list[TracebackType] = []
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        own = _OWN_MODULE.match(module)
        if not own and (kept or not module.startswith("importlib.")):
            kept.append(trace)
        trace = trace.tb_next
    for index, item in enumerate(kept):
        item.tb_next = kept[index + 1] if index + 1 < len(kept) else None
    return kept[0] if kept else None


def split(
    arguments: Sequence[str], options_with_value: frozenset[str]
) -> tuple[list[str], Program | None]:
    """Split ``run``'s words into its own options and the program with its arguments.

    Examples:
        >>> own, program = split(["-q", "train.py", "-q"], frozenset())
        >>> own, program.target, program.arguments
        (['-q'], 'train.py', ('-q',))
    """
    index = 0
    while index < len(arguments):
        word = arguments[index]
        for flag, kind in (("-m", "module"), ("-c", "code")):
            if word == flag:
                if index + 1 == len(arguments):
                    raise ProgramError(f"{flag} needs a {kind} after it")
                target, rest = arguments[index + 1], arguments[index + 2 :]
                return list(arguments[:index]), Program(kind, target, tuple(rest))
        if word == "--":
            index += 1
            break
        if not word.startswith("-"):
            break
        index += 2 if word in options_with_value else 1
    own = [word for word in arguments[:index] if word != "--"]
    if index >= len(arguments):
        return own, None
    return own, Program("script", arguments[index], tuple(arguments[index + 1 :]))
