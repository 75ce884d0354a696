"""``tracelens run`` beside ``python``: same output, same traceback, same exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HELPER = "def answer():\n    return 42\n"

PROGRAMS = {
    "what the program sees": """
        import sys, __main__
        print(sys.argv, __name__, __file__, __doc__, __package__)
        print(getattr(__spec__, 'name', None), type(__loader__).__name__)
        print(sys.path[0], __main__.__dict__ is globals(), sys.modules["__main__"] is __main__)
        print(sorted(n for n in globals() if n.startswith("__")))
    """,
    "imports beside the script": """
        import helper
        print(helper.answer())
    """,
    "exception in a function": """
        def inner(x):
            return 1 / x
        def outer():
            return inner(0)
        outer()
    """,
    "chained exceptions": """
        def load():
            raise KeyError("a")
        try:
            load()
        except KeyError as error:
            raise ValueError("no a") from error
    """,
    "exception while handling another": """
        try:
            int("x")
        except ValueError:
            [].pop()
    """,
    "syntax error": "def broken(:\n    pass\n",
    "missing module": "import no_such_module_anywhere\n",
    "exception in an imported module": """
        import helper_bad
    """,
    "exit with a number": "import sys; sys.exit(3)",
    "exit with zero": "import sys; print('bye'); sys.exit(0)",
    "exit with nothing": "raise SystemExit",
    "exit with a message": "import sys; sys.exit('it went wrong')",
    "exit with a large number": "import sys; sys.exit(257)",
    "hard exit": "import os; print('x', flush=True); os._exit(7)",
    "killed": "import os, signal; print('x', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
    "atexit functions": """
        import atexit
        state = {"n": 1}
        atexit.register(lambda: print("at exit", state))
        print("end")
    """,
    "a thread that outlives the main one": """
        import threading, time
        def work():
            time.sleep(0.2)
            print("thread", __name__)
        threading.Thread(target=work).start()
        print("main")
    """,
    "a thread pool that is never shut down": """
        import time
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(3)
        def work(n):
            time.sleep(0.05 * n)
            if n == 4:
                print("the last", flush=True)
        for n in range(5):
            pool.submit(work, n)
    """,
    "an exception in a thread": """
        import threading
        def work():
            raise RuntimeError("in a thread")
        thread = threading.Thread(target=work, name="worker")
        thread.start(); thread.join()
    """,
    "a fork that falls off the end": """
        import os, sys
        pid = os.fork()
        if pid:
            print("parent", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        else:
            print("child")
    """,
    "a fork that exits": """
        import os, sys
        pid = os.fork()
        if not pid:
            sys.exit(5)
        print("parent", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """,
    "a fork that raises": """
        import os
        pid = os.fork()
        if not pid:
            raise ValueError("in the child")
        print("parent", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """,
    "spawned processes": """
        import multiprocessing
        def square(x):
            return x * x
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(square, [1, 2, 3]))
    """,
    "forked processes": """
        import multiprocessing
        def square(x):
            return x * x
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(square, [1, 2, 3]))
    """,
    "pickling what the program defines": """
        import pickle
        class Point: ...
        print(type(pickle.loads(pickle.dumps(Point()))) is Point)
    """,
    "source of its own functions": """
        import inspect
        def f():
            return 1
        print(inspect.getsource(f), inspect.getfile(f))
    """,
    "a warning": """
        import warnings
        warnings.warn("careful")
    """,
    "an excepthook of its own": """
        import sys
        sys.excepthook = lambda kind, error, trace: print("mine", kind, error, file=sys.stderr)
        raise ValueError("x")
    """,
    "reading stdin": "print(input(), input())",
    "an exception group": """
        raise ExceptionGroup("several", [ValueError(1), TypeError(2)])
    """,
    "dataclasses and type hints of main": """
        from __future__ import annotations
        import dataclasses, typing
        @dataclasses.dataclass
        class A:
            x: "int" = 1
        print(typing.get_type_hints(A), A())
    """,
}


def write(folder: Path, source: str) -> Path:
    lines = source.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    script = folder / "program.py"
    script.write_text("\n".join(line[indent:] for line in lines) + "\n")
    (folder / "helper.py").write_text(HELPER)
    (folder / "helper_bad.py").write_text("def f():\n    raise OSError('bad')\nf()\n")
    return script


def run(words: list[str], folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TRACELENS", "PYTHON"))}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", **settings}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=env,
        input="first\nsecond\n",
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_same(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``python words`` and ``tracelens run words`` and compare all that can be seen."""
    plain = run(list(words), folder)
    trace = folder / "t.tltrace"
    ours = run(["-m", "tracelens", "run", "-q", "-o", str(trace), *words], folder)
    assert (plain.returncode, plain.stdout, plain.stderr) == (
        ours.returncode,
        ours.stdout,
        ours.stderr,
    )
    assert (trace / "manifest.json").exists()
    return ours


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_script_behaves_as_under_python(name: str, tmp_path: Path) -> None:
    if name == "an exception group" and sys.version_info < (3, 11):
        pytest.skip("exception groups came with Python 3.11")
    write(tmp_path, PROGRAMS[name])
    assert_same(tmp_path, "program.py", "--lr", "0.1", "-q")


def test_a_script_in_another_folder_imports_from_there(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    write(folder, PROGRAMS["imports beside the script"])
    assert_same(tmp_path, "sub/program.py")
    (tmp_path / "t.tltrace").rename(tmp_path / "first.tltrace")
    assert_same(tmp_path, str(folder / "program.py"))


def test_code_on_the_command_line(tmp_path: Path) -> None:
    assert_same(tmp_path, "-c", "import sys; print(sys.argv, sys.path[0], __name__)", "a", "-c")


def test_code_on_the_command_line_that_raises(tmp_path: Path) -> None:
    assert_same(tmp_path, "-c", "import json; json.loads('{')")


def test_a_module(tmp_path: Path) -> None:
    write(tmp_path, PROGRAMS["what the program sees"])
    done = assert_same(tmp_path, "-m", "program", "a")
    assert "program SourceFileLoader" in done.stdout


def test_a_package(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("x = 1\n")
    (package / "__main__.py").write_text(
        "from . import x\nimport sys\nprint(x, sys.argv, __package__, __spec__.name)\n"
    )
    assert_same(tmp_path, "-m", "package", "--x")


def test_a_folder_with_a_main_file(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "__main__.py").write_text("import part, sys\nprint(part.x, sys.argv, __file__)\n")
    (folder / "part.py").write_text("x = 1\n")
    assert_same(tmp_path, "app", "a")


def test_a_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", "import part\nprint(part.x)\n")
        archive.writestr("part.py", "x = 1\n")
    assert_same(tmp_path, "app.zip")


def test_an_interrupted_program_exits_with_130(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import time
        def wait():
            print("ready", flush=True)
            time.sleep(30)
        wait()
        """,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tracelens", "run", "-o", "t.tltrace", "program.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.startswith("Traceback (most recent call last):")
    assert "KeyboardInterrupt" in errors
    assert "tracelens/" not in errors


def test_switched_off_it_writes_nothing(tmp_path: Path) -> None:
    write(tmp_path, "print('x')\nraise ValueError('y')\n")
    done = run(["-m", "tracelens", "run", "program.py"], tmp_path, TRACELENS="0")
    assert done.stdout == "x\n"
    assert done.returncode == 1
    assert not list(tmp_path.glob("*.tltrace"))


def test_a_decorated_function_leaves_no_frame_of_ours_in_a_traceback(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
        import tracelens as tl
        @tl.trace
        def train_step():
            raise ValueError("in the step")
        train_step()
        """,
    )
    done = run(["-m", "tracelens", "run", "-q", "program.py"], tmp_path)
    assert "decorate.py" not in done.stderr
    assert done.stderr.count("File ") == 2
