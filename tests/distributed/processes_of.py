"""Starts the ranks of a run as a launcher would, and waits for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without a rank, and with the tests' import path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "TF_CONFIG") and not name.startswith("TRACELENS")
    }
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **more,
    }


def run_ranks(
    folder: Path,
    program: str,
    ranks: int,
    *arguments: str,
    world_size: int | None = None,
    may_fail: bool = False,
    extra: Mapping[int, Mapping[str, str]] | None = None,
) -> list[str]:
    """Run a program once a rank, all at the same time; return what each wrote to stderr.

    Args:
        folder: where the program is written and runs.
        program: its source.
        ranks: processes to start.
        arguments: its arguments.
        world_size: ranks that they are told of, if not as many.
        may_fail: do not mind how they end.
        extra: further variables of the environment, by rank.
    """
    script = folder / "train.py"
    script.write_text(textwrap.dedent(program))
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=folder,
            env=environment(
                **(
                    {
                        "RANK": str(rank),
                        "WORLD_SIZE": str(world_size or ranks),
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": port,
                    }
                    | dict((extra or {}).get(rank, {}))
                )
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    told = []
    try:
        for process in started:
            _, errors = process.communicate(timeout=240)
            told.append(errors)
            assert may_fail or process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    return told
