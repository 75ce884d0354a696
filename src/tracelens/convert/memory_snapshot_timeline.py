"""The raw memory timeline of ``torch.profiler``: ``[[time, action, bytes, category], ...]``.

Times are Unix nanoseconds, -1 for what was there before. Actions and categories are the numbers of
``torch.profiler._memory_profiler``. A change of category is told as a release and an allocation at
one moment.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from tracelens.convert._textfile import BAD_JSON
from tracelens.errors import TraceError
from tracelens.storage.bulk import BulkShard, Coded

_VERSION = 3
_OWNERS = ["parameter", "optimizer_state", "input", "temporary", "activation", "gradient"]
_OWNER_OF = np.array([0, 1, 2, 3, 4, 5, 3, -1], dtype=np.int32)
"""Category's number -> owner's: what autograd keeps for itself counts as temporary."""


class Timeline:
    """A timeline as columns.

    Args:
        table: time, action, bytes, category; int64 of shape (rows, 4).

    Attributes:
        epoch_ns: the first time.
    """

    def __init__(self, table: NDArray[np.int64]) -> None:
        times = table[:, 0]
        known = times >= 0
        self.epoch_ns = int(times[known].min()) if known.any() else 0
        self._t_ns = np.where(known, times - self.epoch_ns, 0)
        self._size = table[:, 2]
        category = np.where((table[:, 3] >= 0) & (table[:, 3] < 8), table[:, 3], 7)
        self._owner = _OWNER_OF[category]

    def write(self, shard: BulkShard) -> None:
        """Write the rows."""
        shard.write(
            "memory",
            {
                "t_ns": self._t_ns,
                "size_bytes": self._size,
                "allocated_bytes": np.cumsum(self._size),
                "device": "unknown",
                "owner": Coded(self._owner, _OWNERS),
            },
        )


def read_timeline(path: Path, data: bytes, problems: list[str]) -> Timeline:
    """Read a timeline; what follows damage is left out and told.

    Args:
        path: for messages.
        data: the file.
        problems: told what is damaged.

    Raises:
        TraceError: it holds no event.
    """
    try:
        rows = msgspec.json.decode(data, type=list[tuple[int, int, int, int]])
    except BAD_JSON as error:
        cut = data.rfind(b"]", 0, len(data.rstrip()) - 1)
        try:
            rows = msgspec.json.decode(data[: cut + 1] + b"]", type=list[tuple[int, int, int, int]])
        except BAD_JSON:
            raise TraceError(f"{path}: not a memory timeline, or damaged: {error}") from None
        problems.append(f"{path.name}: damaged or cut off ({error}): what came before is kept")
    if not rows:
        raise TraceError(f"{path}: the timeline holds no event")
    try:
        table = np.array(rows, dtype=np.int64)
    except OverflowError:
        raise TraceError(f"{path}: a number of the timeline is larger than 64 bits") from None
    return Timeline(table[~_renamed(table)])


def _renamed(table: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which rows are a change of version that keeps its category, and so are no change."""
    found = np.zeros(len(table), dtype=bool)
    first, second = table[:-1], table[1:]
    pair = (
        (first[:, 1] == _VERSION)
        & (second[:, 1] == _VERSION)
        & (first[:, 2] == -second[:, 2])
        & (first[:, 2] <= 0)
        & (first[:, 0] == second[:, 0])
        & (_owners(first) == _owners(second))
    )
    found[:-1] |= pair
    found[1:] |= pair
    return found


def _owners(table: NDArray[np.int64]) -> NDArray[np.int32]:
    owners: NDArray[np.int32] = _OWNER_OF[np.clip(table[:, 3], 0, 7)]
    return owners
