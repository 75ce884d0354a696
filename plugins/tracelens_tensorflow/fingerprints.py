"""Fingerprints of a model's variables, by which the workers of a run are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tracelens.session import Session

_INT_OF = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


class Fingerprints:
    """Takes them at the end of steps (``tl.watch(model, fingerprint_every=N)``).

    A checksum is the wrapping sum of a variable's bits read as integers, as PyTorch's side of the
    toolkit takes it. Variables are copied to the host, one at a time.

    Args:
        session: the recording.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._models: list[tuple[Any, str, int]] = []

    def add(self, model: Any, name: str, every: int) -> None:
        """Take a model's fingerprint at the end of every so many steps."""
        self._models = [known for known in self._models if known[0] is not model]
        self._models.append((model, name, every))

    def end_step(self, step: int) -> None:
        """Take the fingerprints that are due."""
        for model, prefix, every in self._models:
            if step % every == 0:
                for name, value in _values(model):
                    self._write(f"{prefix}/{name}" if prefix else name, value, step)

    def _write(self, name: str, value: NDArray[Any], step: int) -> None:
        with np.errstate(all="ignore"):
            norm = float(np.linalg.norm(value.astype(np.float64, copy=False).reshape(-1)))
        self._session.writer.event(
            "fingerprint",
            step=step,
            kind="parameter",
            name=name,
            numel=int(value.size),
            checksum=checksum(value),
            l2=norm if np.isfinite(norm) else None,
        )


def checksum(value: NDArray[Any]) -> int:
    """Return the wrapping sum of an array's bits.

    Examples:
        >>> checksum(np.array([1.0, 0.0], dtype=np.float32)) == 0x3F800000
        True
    """
    bits = np.ascontiguousarray(value).view(_INT_OF.get(value.dtype.itemsize, np.int8))
    with np.errstate(over="ignore"):
        return int(bits.sum(dtype=np.int64))


def _values(model: Any) -> list[tuple[str, NDArray[Any]]]:
    """Return the trainable variables' names and values; those without numbers are left out."""
    found: list[tuple[str, NDArray[Any]]] = []
    names: dict[str, int] = {}
    for variable in model.trainable_variables:
        name = str(getattr(variable, "path", None) or variable.name)
        # Variables of one name are told apart by their order, which is the same on every worker.
        again = names[name] = names.get(name, 0) + 1
        value = np.asarray(variable.numpy())
        if value.size and value.dtype.kind in "fiubV" and value.dtype.itemsize in _INT_OF:
            found.append((name if again == 1 else f"{name}#{again}", value))
    return found
