"""Process and thread ids of a profile, which may be numbers of any size or names, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracelens.convert.kineto_args import DEVICE_TYPES
from tracelens.convert.kineto_columns import Codes, thread_number

_LIMIT = 1 << 31
_FIRST_FREE = 1 << 30


def thread_ids(keys: Sequence[tuple[Any, Any]]) -> list[tuple[int | None, int]]:
    """Return process and thread ids of host threads, then of the same as streams of devices.

    A thread keeps its id if 31 bits hold it and no thread of another process has it, else it gets
    one of its own.

    Args:
        keys: process and thread id as the file says them.
    """
    taken: dict[int, Any] = {}
    ids: dict[Any, int] = {}
    host: list[tuple[int | None, int]] = []
    streams: list[tuple[int | None, int]] = []
    free = _FIRST_FREE
    for key in keys:
        pid, tid = map(thread_number, key)
        number = ids.get((pid, tid))
        if number is None:
            if _fits(tid) and taken.setdefault(int(tid), pid) == pid:
                number = int(tid)
            else:
                while free in taken:
                    free += 1
                taken[free] = pid
                number = free
            ids[pid, tid] = number
        process = pid if isinstance(pid, int) and abs(pid) < 1 << 62 else None
        host.append((process, number))
        streams.append((process, tid if isinstance(tid, int) and abs(tid) < 1 << 62 else 0))
    return host + streams


def device_numbers(keys: Sequence[tuple[Any, Any]]) -> tuple[Codes, Codes]:
    """Return the numbers of the devices and streams that process and thread ids stand for."""
    pairs = [tuple(map(thread_number, key)) for key in keys]
    return (
        np.array([int(pid) if _fits(pid) else 0 for pid, _ in pairs], dtype=np.int32),
        np.array([int(tid) if _fits(tid) else 0 for _, tid in pairs], dtype=np.int32),
    )


def device_names(kind: NDArray[np.int32], number: NDArray[np.int32]) -> tuple[Codes, list[str]]:
    """Return names of devices of memory, ``"cpu"`` or ``"cuda:0"``, numbered.

    Args:
        kind: c10's device type, shape (n,).
        number: of the device, below 0 for the host's, shape (n,).
    """
    pairs = kind.astype(np.int64) * _LIMIT + number.clip(-1, _LIMIT - 2) + 1
    distinct, code = np.unique(pairs, return_inverse=True)
    names = []
    for pair in distinct.tolist():
        its_kind, its_number = divmod(pair, _LIMIT)
        name = DEVICE_TYPES.get(its_kind, f"device{its_kind}")
        names.append(f"{name}:{its_number - 1}" if its_number else name)
    return code.reshape(-1).astype(np.int32), names


def _fits(number: int | str) -> bool:
    return isinstance(number, int) and -_LIMIT <= number < _LIMIT
