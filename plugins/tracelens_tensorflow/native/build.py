"""Compile the ops once per TensorFlow, compiler and source, and load them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import tensorflow as tf

from tracelens import nativebuild
from tracelens.nativebuild import BuildError

LIBRARY = "tracelens_tensorflow_ops"
_SOURCES = Path(__file__).parent


def _target() -> Path:
    facts = (tf.__version__, tf.version.GIT_VERSION, *_flags(), _has_avx2())
    return nativebuild.target(LIBRARY, f"{LIBRARY}.so", _SOURCES, facts)


def _flags() -> list[str]:
    """Return TensorFlow's own compile flags, without where it is installed."""
    return [flag for flag in tf.sysconfig.get_compile_flags() if not flag.startswith("-I")]


def _has_avx2() -> bool:
    # Not -march=native: that switches on instruction sets at which Eigen's headers fail to compile.
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _load(target: Path) -> tuple[Any, ctypes.PyDLL]:
    if not target.exists():
        nativebuild.build(target, command)
    try:
        ops = tf.load_op_library(str(target))
        # PyDLL keeps the GIL: the functions do not wait and are called often.
        return ops, ctypes.PyDLL(str(target))
    except (tf.errors.OpError, OSError) as error:
        message = (str(error).splitlines() or ["?"])[0]
        raise BuildError(f"{target} cannot be loaded: {message}; delete it to rebuild") from error


def command(cxx: str, output: Path) -> list[str]:
    """Return the compiler's command line."""
    return [
        cxx, "-O2", "-DNDEBUG", "-shared", "-fPIC", "-w", *(["-mavx2"] if _has_avx2() else []),
        *tf.sysconfig.get_compile_flags(), f"-I{_SOURCES}", f"-I{nativebuild.stats_directory()}",
        str(_SOURCES / "ops.cpp"), "-o", str(output), *tf.sysconfig.get_link_flags(),
    ]  # fmt: skip


_library: nativebuild.Once[tuple[Any, ctypes.PyDLL]] = nativebuild.Once(_target, _load)

load = _library.get
"""Returns the module of generated op functions and the library, building it if need be; raises
``BuildError``."""

built = _library.built
"""Tells whether the ops are already compiled for this TensorFlow."""
