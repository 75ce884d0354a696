"""One call of a traced function by the program, as it is handed to whoever wants to repeat it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(slots=True)
class Call:
    """A function that the program called itself, not from within another function.

    Attributes:
        function: the ``AtomicFunction``.
        args: eager tensors, flat, captures included.
        step: number of the step it belongs to.
        writes: it writes trainable variables.
        result: its outputs, flat; ``None`` while it runs.
        kept: outputs of the ops that a replay could not compute again (`effects.ops_to_keep`:
            batches, random numbers), by op; an op ran once for each list of outputs.
        again: runs the function as it ran, with all its effects.
    """

    function: Any
    args: list[Any]
    step: int
    writes: bool = False
    result: list[Any] | None = None
    kept: dict[tf.Operation, list[list[Any]]] = field(default_factory=dict)
    again: Callable[[], Any] | None = None

    @property
    def graph(self) -> Any:
        """The ``FuncGraph`` that the function was made from."""
        return self.function.graph

    @property
    def name(self) -> str:
        """The function's name, as the program wrote it."""
        return plain_name(self.function.name.decode())


def plain_name(name: str) -> str:
    """Return the name of a Python function from that of its function in the runtime.

    Examples:
        >>> plain_name("__inference_train_step_1234")
        'train_step'
    """
    for prefix in ("__inference_", "__forward_", "__backward_"):
        name = name.removeprefix(prefix)
    stem, _, number = name.rpartition("_")
    return plain_name(stem) if stem and number.isdigit() else name
