"""The compiled reader of Kineto's results: built once per torch, Python, compiler and source."""

from __future__ import annotations

import importlib.machinery
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch

from tracelens import nativebuild
from tracelens.nativebuild import BuildError, Once

MODULE = "tracelens_profile_events"
_SOURCES = Path(__file__).parent


def load() -> Any:
    """Return the compiled module, building it if need be; ``None`` if that cannot be done here."""
    try:
        return _once.get()
    except BuildError:
        return None


def built() -> bool:
    """Tell whether it is already compiled for this torch and Python."""
    return _once.built()


def _target() -> Path:
    facts = (torch.__version__, sys.implementation.cache_tag, torch._C._GLIBCXX_USE_CXX11_ABI)
    suffix = importlib.machinery.EXTENSION_SUFFIXES[-1]
    return nativebuild.target(MODULE, MODULE + suffix, _SOURCES, facts)


def _load(target: Path) -> Any:
    return nativebuild.load_extension(MODULE, target, _command)


def _command(cxx: str, output: Path) -> list[str]:
    root = Path(torch.__file__).parent
    include = root / "include"
    return [
        cxx, "-O2", "-DNDEBUG", "-shared", "-fPIC", "-std=c++20", "-w", "-DUSE_KINETO",
        f"-DTORCH_EXTENSION_NAME={MODULE}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
        f"-I{include}", f"-I{include / 'torch/csrc/api/include'}", f"-I{include / 'kineto'}",
        f"-I{sysconfig.get_path('include')}",
        str(_SOURCES / "events.cpp"), "-o", str(output),
        f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python",
    ]  # fmt: skip


_once: Once[Any] = Once(_target, _load)
