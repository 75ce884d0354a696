"""Random graphs with one planted cause: it is always found, and nothing else ever alarms."""

from __future__ import annotations

from dataclasses import dataclass

from graph import BACKWARD, DATA, Graph, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from tracelens.events import OpFlag

HARMLESS, CONSTANT = OpFlag.HARMLESS, OpFlag.CONSTANT
_KINDS = ["mm", "cat", "mask", "where", "softmax", "relu", "back", "sub"]


@dataclass
class Held:
    """A value of the random graph, and what it really holds."""

    value: Value
    nan: bool = False
    inf: bool = False
    planted: bool = False
    """Its badness stems from the planted cause."""

    @property
    def bad(self) -> bool:
        return self.nan or self.inf


class Program:
    """Draws ops over the values there are, and keeps track of the truth.

    A constant Inf comes from masks only; only the planted op makes a NaN or an Inf of its own.
    """

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.g = Graph()
        self.held = [Held(self.g.op("DataLoader", phase=DATA)), Held(self.g.outside())]

    def pick(self, *, bad: bool | None = None) -> Held:
        choices = [h for h in self.held if bad is None or h.bad is bad]
        return self.draw(st.sampled_from(choices))

    def put(self, name: str, *inputs: Held, nan: bool, inf: bool, **about: object) -> Held:
        planted = any(held.planted for held in inputs) and (nan or inf)
        computed, constant = int(inf and planted), int(inf and not planted)
        counts = {"nan": int(nan), "posinf": computed, "neginf": constant}
        value = self.g.op(name, *(held.value for held in inputs), **counts, **about)  # type: ignore[arg-type]
        held = Held(value, nan, inf, planted)
        self.held.append(held)
        return held

    def step(self) -> None:
        """One op that makes nothing bad by itself."""
        kind = self.draw(
            st.sampled_from(["mm", "cat", "mask", "where", "softmax", "relu", "back", "sub"])
        )
        a, b = self.pick(), self.pick()
        nan, inf = a.nan or b.nan, a.inf or b.inf
        if kind == "mm":
            self.put("aten::add", a, b, nan=nan, inf=inf)
        elif kind == "sub" and a.inf and b.inf and (a.planted or b.planted):
            self.put("aten::sub", a, b, nan=True, inf=False)
        elif kind == "back":
            self.put("aten::mul", a, b, nan=nan, inf=inf, phase=BACKWARD)
        elif kind == "cat":
            self.put("aten::cat", a, b, nan=nan, inf=inf, flags=HARMLESS)
        elif kind == "relu":
            self.put("aten::abs", a, nan=a.nan, inf=a.inf, flags=HARMLESS)
        elif kind == "mask" and not a.bad:
            self.put("aten::masked_fill", a, nan=False, inf=True, flags=CONSTANT)
        elif kind == "where":
            good = self.pick(bad=False)
            self.put("aten::where", good, a, nan=False, inf=False, flags=HARMLESS)
        elif kind == "softmax" and not a.nan and not a.planted:
            self.put("aten::_softmax", a, nan=False, inf=False)

    def plant(self) -> Held:
        """The cause: a NaN or an Inf out of finite inputs, or a NaN out of a constant Inf."""
        kind = self.draw(st.sampled_from(["nan", "inf", "masked row"]))
        infs = [h for h in self.held if h.inf and not h.nan]
        if kind == "masked row" and infs:
            cause = self.put(
                "aten::_softmax", self.draw(st.sampled_from(infs)), nan=True, inf=False
            )
        elif kind == "nan":
            cause = self.put("aten::log", self.pick(bad=False), nan=True, inf=False)
        else:
            value = self.g.op("aten::exp", self.pick(bad=False).value, posinf=1)
            cause = Held(value, inf=True)
            self.held.append(cause)
        cause.planted = True
        return cause


@st.composite
def programs(draw: st.DrawFn, *, planted: bool) -> tuple[Program, Held | None]:
    program = Program(draw)
    for _ in range(draw(st.integers(0, 12))):
        program.step()
    cause = program.plant() if planted else None
    for _ in range(draw(st.integers(0, 16))):
        program.step()
    return program, cause


def _measured(program: Program, held: Held) -> dict:
    """The sink that sees the value; harmless ops were not checked, the sink was."""
    return program.g.sink("loss", held.value)


@settings(max_examples=150, deadline=None)
@given(programs(planted=True), st.data())
def test_the_planted_cause_is_always_found(
    drawn: tuple[Program, Held | None], data: st.DataObject
) -> None:
    program, cause = drawn
    assert cause is not None
    sinks = [held for held in program.held if held.planted]
    sink = data.draw(st.sampled_from(sinks))
    finding = program.g.explain(_measured(program, sink))
    assert finding["first_cause"]["op_id"] == cause.value.op_id
    assert finding["severity"] == "error"
    assert finding["path"][0]["op_id"] == cause.value.op_id
    assert finding["path"][-1]["op_id"] == sink.value.op_id


@settings(max_examples=100, deadline=None)
@given(programs(planted=True))
def test_without_a_bad_sink_nothing_alarms(drawn: tuple[Program, Held | None]) -> None:
    program, cause = drawn
    assert cause is not None
    program.g.events.append({"t": "step", "step": 0})
    verdict = program.g.verdict()
    assert verdict["verdict"] == "masked"
    assert verdict["first_cause"]["op_id"] == cause.value.op_id


@settings(max_examples=100, deadline=None)
@given(programs(planted=False), st.data())
def test_constants_alone_never_alarm(
    drawn: tuple[Program, Held | None], data: st.DataObject
) -> None:
    program, _ = drawn
    program.g.sink("read", data.draw(st.sampled_from(program.held)).value)
    program.g.events = [e for e in program.g.events if e["t"] != "sink" or _is_bad(e)]
    program.g.events.append({"t": "step", "step": 0})
    assert program.g.verdict()["verdict"] == "clean"


def _is_bad(sink: dict) -> bool:
    return bool(sink["stats"]["nan"] or sink["stats"]["posinf"] or sink["stats"]["neginf"])
