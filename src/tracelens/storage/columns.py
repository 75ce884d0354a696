"""How whole columns are handed over for a table: without Arrow, so that a training process can.

A table is a mapping from column name to ``Coded``, ``Masked``, an array of shape (rows,), or one
value for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Coded:
    """A column of strings of which few are distinct.

    Attributes:
        codes: index of each row's string in ``texts``, below 0 for NULL; integers of shape (rows,).
        texts: the distinct strings.
    """

    codes: ArrayLike
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Masked:
    """A column of numbers of which some are NULL.

    Attributes:
        values: shape (rows,).
        null: true where a row's value is NULL, shape (rows,).
    """

    values: ArrayLike
    null: ArrayLike
