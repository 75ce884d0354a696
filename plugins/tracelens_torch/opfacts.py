"""What the Python engine must know of an op before it runs, looked up once for each overload."""

from __future__ import annotations

from enum import IntFlag
from typing import Any, NamedTuple

import torch

from tracelens.events import OpFlag
from tracelens_torch import opclass


class Trait(IntFlag):
    """Mirrors ``OpTrait`` in ``tracelens/stats/native/recorder.h``."""

    SKIP = 1
    """Not an operator (a profiler range, a higher-order op): it is only called."""
    SCALAR_READ = 2
    """The user looks at the value (``item()``)."""
    ONES_LIKE = 4
    """Autograd starts a backward with it."""
    CAST = 8
    """Harmless unless the exponent range shrinks."""
    UNCHECKED = 16
    """Its outputs are not ready when it returns (collectives)."""
    TESTS = 32
    """The program asks whether a value is bad (``isnan``)."""
    SELF_TEST = 64
    """``x != x`` asks the same, if both are one tensor; so does ``isfinite``, by ``x == x``."""


class Facts(NamedTuple):
    """What is known of an overload.

    Attributes:
        name: the dispatcher's name, ``"aten::mm"``.
        flags: ``OpFlag`` bits that always hold.
        traits: ``Trait`` bits.
        written: positions of arguments it writes without returning them; ``KEYWORD`` stands
            for any keyword argument.
        target: what to call.
    """

    name: str
    flags: int
    traits: int
    written: tuple[int, ...]
    target: Any


KEYWORD = 1000

_HIDDEN_WRITES = {
    "aten::native_batch_norm": (3, 4),
    "aten::cudnn_batch_norm": (3, 4),
    "aten::miopen_batch_norm": (3, 4),
}
"""Running statistics that these update, which their schemas do not say."""

_NOT_OPERATORS = ("profiler", "rngprims", "_test")
_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional", "symm_mem")
_CASTS = ("aten::copy_", "aten::_to_copy")


def describe(func: Any) -> Facts:
    """Return what is known of what a dispatch mode was asked to run.

    Args:
        func: an ``OpOverload``, or anything else callable, which is then only called.
    """
    if not isinstance(func, torch._ops.OpOverload):
        return Facts(str(func), 0, int(Trait.SKIP), (), func)
    schema = func._schema
    name = schema.name
    namespace = name.partition("::")[0]
    if namespace in _NOT_OPERATORS:
        return Facts(name, 0, int(Trait.SKIP), (), func._op)
    flags = opclass.classify(name)
    returned: set[str] = set()
    aliases = False
    for result in schema.returns:
        if result.alias_info is not None:
            returned |= set(result.alias_info.before_set)
            aliases = aliases or not result.alias_info.is_write
    written: list[int] = []
    writes = in_place = False
    for position, argument in enumerate(schema.arguments):
        alias = argument.alias_info
        if alias is None or not alias.is_write:
            continue
        writes = True
        if returned & set(alias.before_set):
            in_place = True
        else:
            written.append(KEYWORD if argument.kwarg_only else position)
    if in_place or (writes and not schema.returns):
        flags |= OpFlag.INPLACE
    if aliases and not writes:
        flags |= OpFlag.VIEW
    return Facts(
        name, int(flags), int(_traits(name, namespace)),
        tuple(written) or _HIDDEN_WRITES.get(name, ()), func._op,
    )  # fmt: skip


def _traits(name: str, namespace: str) -> Trait:
    traits = Trait(0)
    if name == "aten::_local_scalar_dense":
        traits |= Trait.SCALAR_READ
    elif name == "aten::ones_like":
        traits |= Trait.ONES_LIKE
    elif name in _CASTS:
        traits |= Trait.CAST
    elif name in ("aten::isnan", "aten::isinf"):
        traits |= Trait.TESTS
    elif name in ("aten::eq", "aten::ne"):
        traits |= Trait.SELF_TEST
    if namespace in _COLLECTIVES:
        traits |= Trait.UNCHECKED
    return traits


def tensor_kind(kind: type) -> int:
    """Tell what a tensor type's memory holds.

    Returns:
        1 if its own values (``Tensor``, ``Parameter``, subclasses that only add methods), 2 if
        nothing (fake and functional tensors: the op is only being traced), 0 if it is unknown.
    """
    if kind.__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl:  # type: ignore[attr-defined]
        return 1
    if kind.__name__ in ("FakeTensor", "FunctionalTensor"):
        return 2
    return 1 if kind in (torch.Tensor, torch.nn.Parameter) else 0
