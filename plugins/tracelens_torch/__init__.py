"""TraceLens for PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracelens_torch.callbacks import TraceCallback

__all__ = ["TraceCallback"]


def __getattr__(name: str) -> Any:
    if name == "TraceCallback":
        from tracelens_torch.callbacks import TraceCallback

        return TraceCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
