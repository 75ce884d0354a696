"""Which code is the user's own, and which line of it issued an op."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from enum import IntEnum
from pathlib import Path
from types import CodeType
from typing import Any

import torch
import torch.autograd.graph


class CodeKind(IntEnum):
    """Mirrors ``CodeClass`` in ``native/frames.h``."""

    USER = 1
    FRAMEWORK = 2
    ENGINE = 3
    MAKE_GRADS = 4
    MODULE_CALL = 5


_SPECIAL = {
    torch.autograd.graph._engine_run_backward.__code__: CodeKind.ENGINE,
    torch.autograd._make_grads.__code__: CodeKind.MAKE_GRADS,
    torch.nn.Module._wrapped_call_impl.__code__: CodeKind.MODULE_CALL,
}
_LIBRARIES = (
    "torch", "functorch", "tracelens", "tracelens_torch", "pytest_tracelens", "numpy",
    "_pytest", "pluggy", "pytest", "einops", "opt_einsum", "accelerate",
)  # fmt: skip
_HERE = str(Path(__file__).absolute().parent) + os.sep
_TORCH = str(Path(torch.__file__).absolute().parent) + os.sep
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep


def classify_code(code: CodeType) -> CodeKind:
    """Tell whether a code object is the user's own."""
    special = _SPECIAL.get(code)
    if special is not None:
        return special
    file = code.co_filename
    if file.startswith((_TORCH, _HERE, "<frozen")) or file.startswith(_core_directory()):
        return CodeKind.FRAMEWORK
    if "torchinductor_" in file or file.startswith(("<eval_with_key>", "<torch")):
        return CodeKind.FRAMEWORK
    packages = f"{os.sep}site-packages{os.sep}"
    if packages in file:
        package = file.rpartition(packages)[2].partition(os.sep)[0].removesuffix(".py")
        return CodeKind.FRAMEWORK if package in _LIBRARIES else CodeKind.USER
    return CodeKind.FRAMEWORK if file.startswith(_STDLIB) else CodeKind.USER


def _core_directory() -> str:
    core = sys.modules.get("tracelens")
    file = getattr(core, "__file__", None)
    return str(Path(file).absolute().parent) + os.sep if file else _STDLIB


def line_of(code: CodeType, lasti: int) -> int:
    """Return the line of the instruction at a byte offset, 1-based."""
    line = code.co_firstlineno
    for start, end, at in code.co_lines():
        if start <= lasti < end:
            return at or line
        if at is not None and start <= lasti:
            line = at
    return line


def source_of(code: CodeType, lasti: int) -> dict[str, Any]:
    """Return the source keys of a ``site``: file, line, function and the line's text."""
    line = line_of(code, lasti)
    return {
        "file": code.co_filename,
        "line": line,
        "function": getattr(code, "co_qualname", code.co_name),
        "code": linecache.getline(code.co_filename, line).strip(),
    }


def user_place() -> tuple[CodeType | None, int]:
    """Return the code object and instruction offset of the calling thread's user frame."""
    frame = sys._getframe(1)
    while frame is not None:
        if _kind_of(frame.f_code) is CodeKind.USER:
            return frame.f_code, frame.f_lasti
        frame = frame.f_back  # type: ignore[assignment]
    return None, -1


_kinds: dict[CodeType, CodeKind] = {}


def _kind_of(code: CodeType) -> CodeKind:
    kind = _kinds.get(code)
    if kind is None:
        kind = _kinds[code] = classify_code(code)
    return kind
