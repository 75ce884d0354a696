"""Compile the observer once per torch, Python, compiler and source, and load it."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch

from tracelens import nativebuild
from tracelens.nativebuild import BuildError, cache_directory, compiler

__all__ = ["MODULE", "BuildError", "built", "cache_directory", "command", "compiler", "load"]

MODULE = "tracelens_observer"
_SOURCES = Path(__file__).parent


def _target() -> Path:
    facts = (
        torch.__version__,
        sys.implementation.cache_tag,
        torch._C._GLIBCXX_USE_CXX11_ABI,
        os.environ.get("TRACELENS_PUBLIC_FRAMES", ""),
    )
    suffix = importlib.machinery.EXTENSION_SUFFIXES[-1]
    return nativebuild.target(MODULE, MODULE + suffix, _SOURCES, facts)


def _load(target: Path) -> Any:
    return nativebuild.load_extension(MODULE, target, command)


def command(cxx: str, output: Path) -> list[str]:
    """Return the compiler's command line."""
    root = Path(torch.__file__).parent
    command = [
        cxx, "-O3", "-DNDEBUG", "-shared", "-fPIC", "-std=c++20", "-w",
        f"-DTORCH_EXTENSION_NAME={MODULE}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-I{_SOURCES}", f"-I{nativebuild.stats_directory()}",
        f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}",
        f"-I{sysconfig.get_path('include')}",
        str(_SOURCES / "bindings.cpp"), "-o", str(output),
        f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python",
    ]  # fmt: skip
    if os.environ.get("TRACELENS_PUBLIC_FRAMES"):
        command.insert(1, "-DTRACELENS_PUBLIC_FRAMES")
    return command


_module: nativebuild.Once[Any] = nativebuild.Once(_target, _load)

load = _module.get
"""Returns the compiled module, building it if need be; raises ``BuildError``."""

built = _module.built
"""Tells whether the observer is already compiled for this torch and Python."""
