"""What importing TraceLens pulls in: checked in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("numpy", "pyarrow", "duckdb", "pandas", "rich", "torch", "tensorflow", "textual")


def loaded_after(code: str) -> set[str]:
    """Return the modules of a fresh interpreter after it ran ``code``."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_tracelens_imports_nothing_heavy() -> None:
    loaded = loaded_after("import tracelens")
    assert not loaded & {*HEAVY, "importlib.metadata", "dataclasses", "inspect"}


def test_importing_tracelens_imports_only_its_root() -> None:
    loaded = loaded_after("import tracelens")
    assert {name for name in loaded if name.startswith("tracelens")} == {"tracelens"}


def test_decorating_a_function_imports_nothing_heavy() -> None:
    loaded = loaded_after("import tracelens as tl\n@tl.trace\ndef step(): ...")
    assert not loaded & {*HEAVY, "importlib.metadata"}


def test_recording_imports_no_framework() -> None:
    loaded = loaded_after(
        "import tempfile, tracelens as tl\n"
        "with tl.trace(tempfile.mkdtemp() + '/t.tltrace'): tl.step(loss=1.0)"
    )
    assert not loaded & {"torch", "tensorflow", "textual", "pandas", "rich"}


@pytest.mark.parametrize("verb", ["run", "why", "query"])
def test_the_help_of_a_verb_imports_nothing_heavy(verb: str) -> None:
    loaded = loaded_after(
        f"import contextlib, io, tracelens.cli as c\n"
        f"with contextlib.redirect_stdout(io.StringIO()): c.main([{verb!r}, '--help'])"
    )
    assert not loaded & set(HEAVY)


def test_every_public_name_can_be_reached_and_keeps_its_meaning() -> None:
    # Submodules bind their own names into the package: none may shadow a public one.
    loaded = loaded_after(
        "import pkgutil, importlib, tracelens as tl\n"
        "for m in pkgutil.walk_packages(tl.__path__, 'tracelens.'):\n"
        "    if not m.name.endswith('__main__') and '._' not in m.name:\n"
        "        importlib.import_module(m.name)\n"
        "import types\n"
        "for name in tl.__all__:\n"
        "    assert not isinstance(getattr(tl, name), types.ModuleType), name\n"
    )
    assert "tracelens.session" in loaded


def test_an_unknown_name_is_an_attribute_error() -> None:
    import tracelens as tl

    with pytest.raises(AttributeError, match="no attribute 'tracer'"):
        _ = tl.tracer


def test_dir_lists_the_public_names() -> None:
    import tracelens as tl

    assert set(tl.__all__) <= set(dir(tl))
