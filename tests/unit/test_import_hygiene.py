"""What importing TraceLens pulls in: checked in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


HIDE = """
import sys
from pathlib import Path
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] in {hidden} else found(name, path, target)
PathFinder.find_spec = classmethod(find_spec)
"""
MAIN = "from tracelens.cli import main; sys.exit(main(sys.argv[1:]))"


def without(hidden: set[str], *words: str, program: str = MAIN) -> tuple[int, str]:
    """Run the command line where modules are not installed; return its code and its last line."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=hidden) + program, *words],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.returncode, done.stderr.strip().split("\n")[-1]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tracelens.storage.bulk import BulkShard

    path = tmp_path_factory.mktemp("plain") / "run.tltrace"
    with BulkShard(path) as shard:
        shard.write("ops", {"op_id": [0], "ord": [0], "name": "a", "start_ns": 0, "duration_ns": 5})
        shard.event("step", step=0, start_ns=0, duration_ns=5, scalars={"loss": 1.0})
    return str(path)


@pytest.mark.parametrize(
    ("hidden", "words", "extra"),
    [
        ("textual", ["view", "--serve", "127.0.0.1:0"], "tui"),
        ("matplotlib", ["plot"], "plots"),
        ("tensorboard", ["export", "--format", "tensorboard"], "tensorboard"),
        ("perfetto", ["export", "--format", "perfetto-proto"], "profile"),
        ("pyspark", ["summary", "--engine", "spark"], "spark"),
    ],
)
def test_a_verb_says_in_one_line_what_to_install(
    hidden: str, words: list[str], extra: str, trace: str, tmp_path: Path
) -> None:
    made = {"plot": "made.png", "export": "made"}.get(words[0])
    target = ["-o", str(tmp_path / made)] if made else []
    code, told = without({hidden}, words[0], trace, *words[1:], *target)
    assert code == 2
    assert f"pip install 'tracelens-toolkit[{extra}]'" in told


EXTRAS = {"torch", "tensorflow", "keras", "textual", "pandas", "matplotlib", "pyspark", "isal",
          "perfetto", "tensorboard", "pytest", "pdbpp", "polars", "IPython"}  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [["summary"], ["why"], ["profile"], ["profile", "ops"], ["ranks"], ["verify"], ["doctor"],
     ["query", "SELECT count(*) FROM ops"], ["export", "--format", "perfetto"],
     ["export", "--format", "speedscope"], ["export", "--format", "csv"], ["report"]],
    ids=" ".join,
)  # fmt: skip
def test_the_core_alone_answers(words: list[str], trace: str, tmp_path: Path) -> None:
    target = ["-o", str(tmp_path / "made")] if words[0] in ("report", "export") else []
    given = [] if words[0] == "doctor" else [trace]
    assert without(EXTRAS, words[0], *given, *words[1:], *target)[0] == 0


def test_the_core_alone_imports_a_packed_profile(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "fixtures" / "profiles" / "rank0.pt.trace.json.gz"
    assert without(EXTRAS, "import", str(file), "-o", str(tmp_path / "made"))[0] == 0


def test_a_program_is_run_where_no_framework_is_installed(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("print(1)\n")
    code, told = without(EXTRAS, "run", "-o", str(tmp_path / "made"), str(file))
    assert (code, "trace in" in told) == (0, True)
