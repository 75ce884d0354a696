"""A stopped program and the face that shows it."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracelens import control
from tracelens.control import Listener, Stopped, stand_still


@pytest.fixture
def heard() -> queue.Queue[Stopped]:
    return queue.Queue()


@pytest.fixture
def listener(heard: queue.Queue[Stopped], monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    listener = Listener(heard.put)
    for name, value in listener.environment.items():
        monkeypatch.setenv(name, value)
    yield listener
    listener.close()


def stop_in_thread() -> queue.Queue[bool | None]:
    answers: queue.Queue[bool | None] = queue.Queue()
    threading.Thread(target=lambda: answers.put(stand_still("a NaN", 7)), daemon=True).start()
    return answers


def test_without_a_face_a_program_does_not_stand_still() -> None:
    assert stand_still("a NaN", 7) is None


@pytest.mark.parametrize("go_on", [True, False])
def test_a_program_stands_still_until_it_is_answered(
    listener: Listener, heard: queue.Queue[Stopped], go_on: bool
) -> None:
    answers = stop_in_thread()

    assert heard.get(timeout=10) == Stopped(7, "a NaN")
    assert answers.empty()
    assert listener.answer(go_on=go_on) == 1
    assert answers.get(timeout=10) is go_on
    assert listener.answer(go_on=True) == 0


def test_a_face_that_leaves_lets_the_program_go_on(
    listener: Listener, heard: queue.Queue[Stopped]
) -> None:
    answers = stop_in_thread()
    heard.get(timeout=10)

    listener.close()

    assert answers.get(timeout=10) is True
    assert stand_still("another", 8) is None


def test_only_who_holds_the_token_is_heard(listener: Listener, heard: queue.Queue[Stopped]) -> None:
    path = listener.environment[control.VARIABLE].partition(" ")[2]

    for line in (b'{"token": "wrong", "op_id": 1, "report": ""}\n', b"[]\n", b"\xff\n", b"\n"):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(10)
            stranger.connect(path)
            stranger.sendall(line)
            assert stranger.recv(1) == b""

    assert heard.empty()
    assert Path(path).parent.stat().st_mode & 0o077 == 0
