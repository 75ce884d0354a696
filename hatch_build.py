"""Compiles the statistics extension where a C++ compiler is found; never fails an install.

The extension uses CPython's stable ABI (3.10), so one build serves every later version. Without
it the package is pure Python and numpy takes its place.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCE = "src/tracelens/stats/native/module.cpp"
_TARGET = "src/tracelens/stats/_native.abi3.so"
_SKIP = "TRACELENS_NO_NATIVE"


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Builds ``tracelens.stats._native`` for wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the result into the wheel; say so on failure and go on.

        Args:
            version: ``"standard"`` or ``"editable"``.
            build_data: hatchling's; gets the extension and the wheel's tag.
        """
        if self.target_name != "wheel" or os.environ.get(_SKIP):
            return
        target = Path(self.root) / _TARGET
        if not compile_extension(Path(self.root) / _SOURCE, target):
            return
        if version == "editable":
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"cp310-abi3-{_platform()}"
        build_data["force_include"][str(target)] = "tracelens/stats/_native.abi3.so"


def compile_extension(source: Path, target: Path) -> bool:
    """Compile the extension; return whether it is there.

    Args:
        source: its C++ file.
        target: the shared library to write, replaced in one step.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or _found("c++", "g++", "clang++")
    include = sysconfig.get_paths()["include"]
    if os.name != "posix" or not compiler or not (Path(include) / "Python.h").exists():
        _say("no C++ compiler or Python headers")
        return False
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    command = [
        *compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden",
        f"-I{include}", f"-I{source.parent}", str(source), "-o", str(unfinished),
    ]  # fmt: skip
    if sys.platform == "darwin":
        command += ["-undefined", "dynamic_lookup"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        _say(str(error))
        return False
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["unknown"])[0]
        _say(reason)
        unfinished.unlink(missing_ok=True)
        return False
    unfinished.replace(target)
    return True


def _say(reason: str) -> None:
    sys.stderr.write(f"tracelens: pure Python, the extension was not built: {reason}\n")


def _found(*names: str) -> list[str]:
    path = next((p for p in map(shutil.which, names) if p), None)
    return [path] if path else []


def _platform() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    _root = Path(__file__).parent
    sys.exit(0 if compile_extension(_root / _SOURCE, _root / _TARGET) else 1)
