"""Which tensors' values ``capture="tensors"`` stores, and how many bytes of them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from tracelens.events import NO_ID, SLOT_BITS

if TYPE_CHECKING:
    from tracelens.session import Session


class CapturedValues:
    """Stores the values of tensors whose names match, until the budget is spent.

    Args:
        session: the recording; its config names patterns and budget.

    Attributes:
        active: whether the running step is recorded; nothing is stored of one that is not.
        step: its number.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._patterns = session.config.tensors
        self._left_bytes = session.config.tensor_budget_bytes
        self._spent = False
        self.step = session.current_step
        self.active = True

    @property
    def open(self) -> bool:
        """Whether anything can be stored now."""
        return self.active and not self._spent

    def wanted(self, name: str, *, by_name: bool = False) -> bool:
        """Tell whether a pattern asks for a name, or for what stands before its last slash.

        Args:
            name: of a tap, module output or gradient.
            by_name: a pattern that matches everything does not count.
        """
        owner = name.rpartition("/")[0]
        return any(
            fnmatchcase(name, pattern) or fnmatchcase(owner, pattern)
            for pattern in self._patterns
            if not (by_name and pattern == "*")
        )

    def reserve(self, name: str, size_bytes: int) -> bool:
        """Take bytes off the budget; the first time there are not enough, say so and stop."""
        if not self.open:
            return False
        if size_bytes > self._left_bytes:
            self._spent = True
            self._session.note(
                "drop",
                f"the budget for tensor values is spent at {name!r}; "
                "raise tensor_budget_bytes= or name fewer tensors",
                severity="warning",
            )
            return False
        self._left_bytes -= size_bytes
        return True

    def store(self, name: str, value_id: int, data: bytes, dtype: str, shape: list[int]) -> None:
        """Write values for which bytes were reserved.

        Args:
            name: what to call them.
            value_id: the value's id, -1 unknown.
            data: row-major and little-endian.
            dtype: framework-neutral name.
            shape: sizes.
        """
        op_id = value_id >> SLOT_BITS if value_id >= 0 else NO_ID
        self._session.writer.tensor(value_id, name, data, dtype, shape, self.step, op_id)
