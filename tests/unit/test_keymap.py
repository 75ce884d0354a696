"""A user's keys: read from two files, and faults told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracelens.commands import TABLE
from tracelens.errors import ConfigError
from tracelens.keymap import default_keys, user_keymap


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "tracelens").mkdir(parents=True)
    (tmp_path / "project" / "inner").mkdir(parents=True)
    return tmp_path


def project(home: Path, text: str) -> Path:
    (home / "project" / "pyproject.toml").write_text(f"[tool.tracelens.keymap]\n{text}\n")
    return home / "project" / "inner"


def test_without_files_nothing_is_changed(home: Path) -> None:
    assert user_keymap(directory=home / "project") == {}


def test_the_projects_keys_go_before_the_users(home: Path) -> None:
    config = home / "config" / "tracelens" / "config.toml"
    config.write_text('[keymap]\nstep = "f10"\nnext = "f8"\n')
    assert user_keymap(directory=project(home, 'step = "f11"')) == {"step": "f11", "next": "f8"}


def test_two_commands_may_swap_their_keys(home: Path) -> None:
    inner = project(home, 'step = "n"\nnext = "s"')
    assert user_keymap(directory=inner) == {"step": "n", "next": "s"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('stepp = "x"', "no command is called 'stepp'; did you mean 'step'?"),
        ('step = "n"', "'n' is the key of 'step' and 'next'"),
        ("step = 3", "the key of 'step' is a text, not 3"),
        ("step = ", "Invalid value"),
    ],
)
def test_a_fault_is_told_in_one_line_with_its_file(home: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        user_keymap(directory=project(home, text))
    assert says in str(caught.value)
    assert "pyproject.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_two_commands_have_the_same_key() -> None:
    keys = [spec.key for spec in TABLE if spec.key]
    assert len(set(keys)) == len(keys)
    assert set(keys) == set(filter(None, default_keys().values()))
