"""Names of modules and parameters, as the user would write them.

The first model seen gives plain paths (``encoder.layers.3.attn``); the root itself goes by its
class. A further model's paths start with its class, or with the name given to ``tl.watch``.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

_CALL = torch.nn.Module._wrapped_call_impl.__code__
_WRAPPER_PARTS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


class ModuleNames:
    """Which path each live module and parameter has.

    Args:
        on_dead: called when a named module is collected, since its address may come back.
    """

    def __init__(self, on_dead: Callable[[], None] | None = None) -> None:
        self._paths: dict[int, tuple[weakref.ref[Any], str]] = {}
        self._parameters: dict[int, tuple[weakref.ref[Any], str]] = {}
        self._roots = 0
        self._on_dead = on_dead

    def watch(self, root: torch.nn.Module, name: str = "") -> None:
        """Name every module and parameter below ``root``."""
        prefix = f"{name}." if name else ""
        if not name and self._roots and any(True for _ in root.children()):
            prefix = f"{type(root).__name__}."
        self._roots += bool(name) or any(True for _ in root.children())
        for path, module in root.named_modules():
            path = _plain(path)
            known = self._paths.get(id(module))
            if known is not None and known[0]() is module and not name:
                continue
            shown = prefix + path if path else (name or type(root).__name__)
            self._paths[id(module)] = (weakref.ref(module, self._forget), shown)
        for path, parameter in root.named_parameters():
            known = self._parameters.get(id(parameter))
            if known is None or known[0]() is not parameter or name:
                self._parameters[id(parameter)] = (weakref.ref(parameter), prefix + _plain(path))

    def of(self, module: Any, frame: FrameType | None = None) -> str:
        """Return a module's path, naming its whole model first if it is new.

        Args:
            module: the module that is being called.
            frame: where to look for the outermost module of the call; the caller by default.
        """
        known = self._paths.get(id(module))
        if known is not None and known[0]() is module:
            return known[1]
        layer = _keras_name(module)
        if layer:
            return layer
        outermost = _outermost(frame or sys._getframe(1))
        # A module's truth may be its length, or an error: a compiled one that has none raises.
        self.watch(module if outermost is None else outermost)
        known = self._paths.get(id(module))
        if known is not None and known[0]() is module:
            return known[1]
        return type(module).__name__

    def parameters(self) -> list[Any]:
        """Return every parameter that has a name and lives."""
        found = [reference() for reference, _ in list(self._parameters.values())]
        return [parameter for parameter in found if parameter is not None]

    def parameter(self, parameter: Any, fallback: str = "") -> str:
        """Return a parameter's path, or ``fallback`` if no named model holds it."""
        known = self._parameters.get(id(parameter))
        return known[1] if known is not None and known[0]() is parameter else fallback

    def _forget(self, dead: weakref.ref[Any]) -> None:
        if self._on_dead is not None:
            self._on_dead()


def _keras_name(module: Any) -> str:
    """Return the name of a Keras layer on the torch backend, empty for other modules.

    Keras does not register a model's layers as children, and names each of them itself.
    """
    keras = sys.modules.get("keras.src.layers.layer")
    layer = getattr(keras, "Layer", None)
    return str(module.name) if layer is not None and isinstance(module, layer) else ""


def _plain(path: str) -> str:
    """A path without the parts that wrappers such as ``torch.compile`` add."""
    for part in _WRAPPER_PARTS:
        path = path.replace(part, "")
    return path.removesuffix("._orig_mod") if path != "_orig_mod" else ""


def _outermost(frame: FrameType | None) -> Any:
    found = None
    while frame is not None:
        if frame.f_code is _CALL:
            found = frame.f_locals.get("self")
        frame = frame.f_back
    return found
