"""``tracelens doctor``: what is installed, what will be used, and how to get more."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from tracelens import __version__, config, discovery
from tracelens.cli._command import Command, add_json
from tracelens.cli._output import print_json, print_text
from tracelens.errors import EXIT_FINDINGS, EXIT_OK

_PACKAGES = ("numpy", "pyarrow", "duckdb", "rich", "torch", "tensorflow")
_COMPILERS = ("c++", "g++", "clang++")


class Doctor(Command):
    """Show the versions, the engine each framework will use and why, and how to fix what is off.

    Exits with 1 if something that is installed cannot be used.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the output's form."""
        add_json(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Print the examination."""
        found = examine()
        if options.json:
            print_json(found)
        else:
            print_text(_render(found))
        return EXIT_OK if all(b.get("ok") for b in found["backends"].values()) else EXIT_FINDINGS


def examine() -> dict[str, Any]:
    """Return what `doctor` shows: versions, environment, compiler, and one entry a framework.

    Frameworks that are installed are imported, to ask their backend which engine it would use.
    """
    return {
        "tracelens": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "compiler": _compiler(),
        "environment": {
            name: os.environ[name]
            for name in (config.SWITCH, config.DIRECTORY, *config.OVERRIDES.values(), "CXX")
            if name in os.environ
        },
        "backends": {name: _backend(name) for name in sorted(discovery.entry_points())},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> str | None:
    wanted = os.environ.get("CXX")
    candidates = (wanted, *_COMPILERS) if wanted else _COMPILERS
    return next((path for name in candidates if (path := shutil.which(name))), None)


def _backend(framework: str) -> dict[str, Any]:
    if find_spec(framework) is None:
        return {
            "ok": True,
            "installed": False,
            "fix": f'pip install "tracelens-toolkit[{framework}]"',
        }
    try:
        __import__(framework)
        description = discovery.load(framework).describe()
    except Exception as error:
        return {
            "ok": False,
            "installed": True,
            "why": f"the backend does not load: {type(error).__name__}: {error}",
            "fix": f"python -c 'import {framework}' should work first",
        }
    return {"ok": True, "installed": True, **description}


def _render(found: dict[str, Any]) -> str:
    lines = [
        f"tracelens {found['tracelens']}, Python {found['python']}, {found['platform']}, "
        f"{found['cpus']} CPUs",
        "packages:  "
        + ", ".join(f"{name} {version or '-'}" for name, version in found["packages"].items()),
        f"compiler:  {found['compiler'] or 'none found (set CXX, or install g++ or clang++)'}",
    ]
    if found["environment"]:
        lines.append("variables: " + ", ".join(f"{k}={v}" for k, v in found["environment"].items()))
    for name, backend in found["backends"].items():
        lines += ["", f"{name}:"]
        if not backend["installed"]:
            lines.append(f"  not installed; {backend['fix']}")
            continue
        for key, value in backend.items():
            if key in ("ok", "installed") or value in (None, "", [], {}):
                continue
            label = key.replace("_", " ")
            if isinstance(value, dict):
                lines.append(f"  {label}:")
                lines += [f"    {inner}: {item}" for inner, item in value.items()]
            elif isinstance(value, list | tuple):
                lines.append(f"  {label}: {', '.join(map(str, value))}")
            else:
                lines.append(f"  {label}: {value}")
    if not found["backends"]:
        lines += ["", "no backend is installed; pip install tracelens-toolkit again"]
    return "\n".join(lines)
