"""Breaks on threads: the user's own can stop, an engine's leaves it to the next user's line."""

from __future__ import annotations

from pathlib import Path

from conversation import Conversation

TOY = Path(__file__).parents[1] / "toy"

HEAD = """
import threading
import toyframework as toy
import tracelens as tl

def train(session):
    loss = toy.log(toy.Value(0.0))
    session.backends[0].sink("loss", "loss", loss)
    session.step()
    print("trained")

session = tl.trace("run.tltrace", nonfinite="break", capture="ops", quiet=True).__enter__()
"""

ENGINE = (
    HEAD
    + """
loss = toy.log(toy.Value(0.0))
session.backends[0].sink("loss", "loss", loss)
engine = threading.Thread(target=session.explain_pending)
engine.start()
engine.join()
print("the engine has ended")
session.step()
session.close()
"""
)

OWN = (
    HEAD
    + """
worker = threading.Thread(target=train, args=(session,), name="trainer")
worker.start()
worker.join()
session.close()
"""
)


def program(directory: Path, source: str) -> Conversation:
    (directory / "train.py").write_text(source)
    return Conversation(["train.py"], directory, PYTHONPATH=str(TOY))


def test_an_engines_thread_has_no_line_to_stand_at_so_the_next_line_of_the_user_stops(
    tmp_path: Path,
) -> None:
    talk = program(tmp_path, ENGINE)
    said = talk.reach_prompt()
    assert said.index("the engine has ended") < said.index("train.py")
    assert "-> session.step()" in said
    assert "toy::log" in talk.ask("lt") or "log" in talk.ask("oi")
    _, status = talk.leave("c")
    assert status == 0


def test_a_training_in_a_thread_of_its_own_stops_in_that_thread(tmp_path: Path) -> None:
    talk = program(tmp_path, OWN)
    said = talk.reach_prompt()
    assert "stands still in the thread trainer" in said
    assert "train()" in said
    assert "-> session.step()" in said
    said, status = talk.leave("c")
    assert "trained" in said
    assert status == 0
