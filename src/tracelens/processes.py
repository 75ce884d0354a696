"""Which process of a run this is: its rank, how many there are, and which launch they belong to."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_VARIABLES = (
    ("RANK", "WORLD_SIZE"),  # torchrun, and what torch.distributed's env:// reads
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI
)
_TASKS = ("chief", "master", "worker")
MAX_RANKS = 1 << 17


@dataclass(frozen=True, slots=True)
class Place:
    """This process among those of its run.

    Attributes:
        rank: its number, from 0.
        world_size: how many there are.
    """

    rank: int = 0
    world_size: int = 1


def place(environ: Mapping[str, str] | None = None) -> Place:
    """Return this process's place: as its launcher says, else as torch.distributed knows it.

    TensorFlow's ``TF_CONFIG`` counts its chief first, then its workers; evaluators and parameter
    servers are no ranks.

    Args:
        environ: the environment.

    Examples:
        >>> place({"RANK": "3", "WORLD_SIZE": "4"})
        Place(rank=3, world_size=4)
        >>> place({"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}, '
        ...        '"task": {"type": "worker", "index": 1}}'})
        Place(rank=1, world_size=2)
    """
    given = os.environ if environ is None else environ
    for rank, size in _VARIABLES:
        if given.get(rank, "").isdecimal():
            number = int(given[rank])
            told = int(given[size]) if given.get(size, "").isdecimal() else 1
            return _checked(number, max(told, number + 1))
    return _of_tf_config(given.get("TF_CONFIG", "")) or _of_torch() or Place()


def launch(environ: Mapping[str, str] | None = None) -> str:
    """Return a short text that all ranks of one launch share, and no other launch; "" alone.

    It keeps a trace that an earlier launch has left from being joined. Without a run id of torchrun
    it is the address at which the ranks meet.

    Args:
        environ: the environment.
    """
    given = os.environ if environ is None else environ
    elastic = given.get("TORCHELASTIC_RUN_ID", "none")
    if elastic not in ("", "none"):
        facts = [elastic]
    else:
        cluster = _json(given.get("TF_CONFIG", "")).get("cluster")
        facts = [given.get("MASTER_ADDR", ""), given.get("MASTER_PORT", "")]
        facts.append(json.dumps(cluster, sort_keys=True) if cluster else "")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12] if any(facts) else ""


def launched(environ: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Return when the ranks of this machine were started, and a mark of their launch.

    Ranks that record to a path of the toolkit's choosing meet there: their common parent tells the
    time (as ``YYYYmmdd-HHMMSS``), the launch tells two runs of one parent apart.

    Args:
        environ: the environment.
    """
    started = _process_start(os.getppid())
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(started)), launch(environ)[:4]


def _process_start(pid: int) -> float:
    """Return the Unix time at which a process began; today's midnight where the system is mute."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        with open("/proc/stat", "rb") as file:
            boot = next(int(line.split()[1]) for line in file if line.startswith(b"btime"))
        return boot + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        now = time.time()
        return now - now % 86400


def _of_tf_config(text: str) -> Place | None:
    config = _json(text)
    cluster, task = config.get("cluster"), config.get("task")
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        return None
    sizes = [len(cluster.get(name) or ()) for name in _TASKS]
    kind, index = task.get("type"), task.get("index", 0)
    if kind not in _TASKS or not isinstance(index, int) or sum(sizes) < 1:
        return None
    return _checked(sum(sizes[: _TASKS.index(kind)]) + index, sum(sizes))


def _of_torch() -> Place | None:
    """Ask torch.distributed, if the program has imported it and joined a process group."""
    distributed: Any = sys.modules.get("torch.distributed")
    try:
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return _checked(int(distributed.get_rank()), int(distributed.get_world_size()))
    except Exception:
        return None
    return None


def _checked(rank: int, world_size: int) -> Place:
    known = 0 <= rank < world_size <= MAX_RANKS
    return Place(rank, world_size) if known else Place()


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
