"""Which code is the user's own, and which line of it issued an op."""

from __future__ import annotations

import sys
from enum import IntEnum
from pathlib import Path
from types import CodeType
from typing import Any

import torch
import torch.autograd.graph

from tracelens.userframes import UserFiles, line_of, source_at, source_keys

__all__ = ["CodeKind", "classify_code", "line_of", "source_of", "user_place"]


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
_FILES = UserFiles(
    # Trainers only: packages that hold models (transformers, fastai, timm) are the user's.
    libraries=(
        *("torch", "functorch", "keras", "accelerate", "skorch"),
        *("lightning", "pytorch_lightning", "lightning_fabric"),
    ),
    directories=(Path(torch.__file__).parent, Path(__file__).parent),
    prefixes=("<eval_with_key>", "<torch"),
    parts=("torchinductor_",),
)


def classify_code(code: CodeType) -> CodeKind:
    """Tell whether a code object is the user's own."""
    special = _SPECIAL.get(code)
    if special is not None:
        return special
    return CodeKind.USER if _FILES.owns(code.co_filename) else CodeKind.FRAMEWORK


def source_of(code: CodeType, lasti: int) -> dict[str, Any]:
    """Return the source keys of a ``site``: file, line, function and the line's text."""
    function = getattr(code, "co_qualname", code.co_name)
    return source_keys(source_at(code.co_filename, line_of(code, lasti), function))


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
