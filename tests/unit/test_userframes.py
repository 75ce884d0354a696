"""Which files are the user's own, and what their lines say."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

import tracelens
from tracelens.userframes import UserFiles, directory_of, line_of, source_at, text_of

PACKAGES = Path(sysconfig.get_paths()["purelib"])
FILES = UserFiles(
    libraries=("frame",), directories=("/opt/frame",), prefixes=("<made",), parts=("generated_",)
)


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("/home/me/train.py", True),
        ("<stdin>", True),
        (str(PACKAGES / "my_models" / "net.py"), True),
        (str(PACKAGES / "frame" / "ops.py"), False),
        (str(PACKAGES / "numpy" / "core.py"), False),
        ("/opt/frame/ops.py", False),
        ("/opt/frameworks/mine.py", True),
        ("<made by the frame>", False),
        ("/tmp/generated_12.py", False),
        (str(Path(tracelens.__file__).with_name("api.py")), False),
        (str(Path(sysconfig.get_paths()["stdlib"]) / "json" / "decoder.py"), False),
        ("<frozen importlib._bootstrap>", False),
    ],
)
def test_a_file_is_the_users_unless_it_is_a_librarys(file: str, own: bool) -> None:
    assert FILES.owns(file) is own


def test_a_source_holds_the_text_of_its_line() -> None:
    code = test_a_source_holds_the_text_of_its_line.__code__
    source = source_at(__file__, line_of(code, 0) + 1, "test")
    assert source.code.startswith("code = test_a_source")
    assert text_of("/nowhere.py", 3) == ""


def test_a_package_that_is_not_imported_has_the_standard_librarys_directory() -> None:
    assert directory_of("no_such_package") == sysconfig.get_paths()["stdlib"]
    assert Path(directory_of("pytest")) == Path(pytest.__file__).parent
