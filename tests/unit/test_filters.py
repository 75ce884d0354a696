"""Filter expressions: one meaning for columns, single ops and SQL, and errors that point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_builder import TraceBuilder
from tracelens import filters
from tracelens.events import Op, OpFlag, Phase
from tracelens.filters import FilterError
from tracelens.storage import shardreader
from tracelens.storage.format import RECORD, RECORD_BYTES, RING_HEADER_BYTES
from tracelens.storage.reader import TraceReader, open_trace

FACTS = [
    ("aten::log", "aten::log", [4]),
    ("log", "log", [4]),
    ("LOG", "the namespace and the case of an op may be left out", [4]),
    ("aten::*", "a star matches anything", [0, 1, 2, 3, 4, 7]),
    ("MatMul", "a TensorFlow name", [5]),
    ("encoder", "a module stands for what is inside it", [1, 2, 3]),
    ("encoder.layers.1*", "a pattern of modules", [2, 3]),
    ("encoder.layers.1", "one module, not one that only begins so", [2]),
    ("decoder/dense", "a Keras path", [5]),
    ("train.py:12", "a line", [0, 1]),
    ("train.py:12-13", "a range of lines", [0, 1, 2]),
    ("train.py", "a file", [0, 1, 2, 3, 4, 5, 6, 7]),
    ("rain.py", "a file's name is not matched in its middle", []),
    ("phase:backward", "a phase", [6]),
    ("step:1", "a step", [4, 5, 6, 7]),
    ("step:0-1", "a range of steps", [0, 1, 2, 3, 4, 5, 6, 7]),
    ("@nan", "NaN in an output", [4, 5]),
    ("@inf", "Inf in an output", [5, 7]),
    ("@bad", "anything non-finite", [4, 5, 7]),
    ("@view", "a flag of the op", [3]),
    ("nan>0", "a count", [4, 5]),
    ("absmax>1e4", "a magnitude", [2]),
    ("absmax <= 1", "what was not measured is not below", [0, 1, 4, 5, 6, 7]),
    ("not absmax<=1", "and so it is in the negation", [2, 3]),
    ("duration>1us", "a time with its unit", [1]),
    ("op~^aten::(log|exp)$", "a regular expression", [2, 4]),
    ("op!~aten", "what a regular expression does not match", [5, 6]),
    ("op = aten::exp", "spaces around a comparison", [2]),
    ("op != 'aten::exp' and step=0", "the negation of equality", [0, 1, 3]),
    ('code~"a @ b"', "quoted text", [0, 1, 2, 3, 4, 5, 6, 7]),
    ("code:'a @ b' and line:13", "quoted text after a colon", [2]),
    ("@nan and not @inf", "and, not", [4]),
    ("@nan or phase:backward", "or", [4, 5, 6]),
    ("not (@nan or step:0)", "parentheses", [6, 7]),
    ("aten::log if nan>0", "if is and", [4]),
    ("reads:64", "who read a value", [5, 6]),
    ("writes:64", "who wrote it", [4]),
    ("@finding", "the ops that findings name", [4, 7]),
    ("id:3-4", "ids", [3, 4]),
    ("dtype:float32", "a type", [0, 1, 2, 3, 4, 5, 6, 7]),
    ("parent=1", "children", [2]),
    ("forward=4", "the backward of an op", [6]),
]


def recorded(path: Path) -> TraceBuilder:
    trace = TraceBuilder(path)
    trace.op("aten::linear", module="", line=12)
    trace.op("aten::relu", module="encoder.layers.0", line=12, duration_ns=5_000)
    trace.op("aten::exp", module="encoder.layers.1", line=13, parent=1)
    change(trace, vmax=30_000.0)
    trace.op("aten::view", module="encoder.layers.10", line=20, flags=OpFlag.VIEW, value_id=32)
    change(trace, stat_level=0)
    trace.op("aten::log", step=1, module="", line=21, stats={"nan": 2})
    trace.op(
        "MatMul", step=1, module="decoder/dense", line=22, stats={"nan": 1, "posinf": 1},
        inputs=(64,),
    )  # fmt: skip
    trace.op(
        "LogBackward0", step=1, module="", line=21, phase=Phase.BACKWARD, fwd=4, inputs=(1, 64)
    )
    trace.op("aten::sum", step=1, module="", line=23, stats={"neginf": 1})
    return trace


def change(trace: TraceBuilder, **fields: float) -> None:
    """Change fields of the last record."""
    offset = RING_HEADER_BYTES + RECORD_BYTES * (trace.position - 1)
    record = np.frombuffer(trace.ring.buffer, dtype=RECORD, count=1, offset=offset)
    for name, value in fields.items():
        record[name] = value


@pytest.fixture(scope="module", params=["sealed, small", "sealed, large", "killed", "both"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TraceReader:
    path = tmp_path_factory.mktemp("filters") / "run.tltrace"
    trace = recorded(path)
    if request.param == "both":
        trace.seal()
        trace.op("aten::late", step=2)
    patch = pytest.MonkeyPatch()
    if request.param.startswith("sealed"):
        trace.close()
    else:
        trace.kill()
    if request.param != "sealed, small":
        patch.setattr(shardreader, "SMALL_ROWS", 0)
    opened = open_trace(path)
    opened.count_ops()
    patch.undo()
    request.addfinalizer(opened.close)
    return opened


def early_ops(reader: TraceReader) -> list[Op]:
    return [op for op in reader.iter_ops() if op.step < 2]


@pytest.mark.parametrize(("text", "reason", "expected"), FACTS, ids=[fact[0] for fact in FACTS])
def test_an_expression_means_the_same_to_columns_ops_and_sql(
    reader: TraceReader, text: str, reason: str, expected: list[int]
) -> None:
    condition = filters.compile(text, findings=[4, 7])
    found = reader.find(condition, limit=100, until=7)
    assert list(found.op_ids) == expected, reason
    assert [op.op_id for op in early_ops(reader) if condition.matches(op)] == expected
    text, values = condition.sql()
    head, *rest = text.split("?")
    where = head + "".join(literal(v) + part for v, part in zip(values, rest, strict=True))
    rows = reader.sql(f"SELECT op_id FROM ops WHERE step < 2 AND ({where}) ORDER BY op_id")
    assert [row[0] for row in rows] == expected


def literal(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("absmax>foo", 7, "'foo' is not a number"),
        ("absmx>1", 0, "did you mean 'absmax'?"),
        ("@nam", 0, "did you mean 'nan'?"),
        ("(op=log", 7, "a ) is missing"),
        ("op=log extra", 7, "is not expected here"),
        ("op~(", 3, "not a regular expression"),
        ("op~(?=a)", 3, "not supported"),
        ("phase:foward", 6, "no phase is called 'foward'"),
        ("step:x", 5, "is not a number or a range"),
        ("nan~3", 3, "needs a text"),
        ("op>3", 2, "compare it with ="),
        ("and nan>0", 0, "cannot begin with 'and'"),
        ("nan>0 and", 9, "a condition is missing at the end"),
        ("nan>", 4, "a value is missing after >"),
        ("", 0, "an empty filter"),
        ("reads:me", 6, "is not a value id"),
        ("nodule:x", 0, "did you mean 'module'?"),
        ("(" * 60 + "@nan" + ")" * 60, 40, "nested too deeply"),
        ("x" * 3_000, 0, "longer than"),
    ],
)
def test_an_error_is_one_line_and_points_at_the_spot(text: str, column: int, says: str) -> None:
    with pytest.raises(FilterError) as caught:
        filters.compile(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.column == column
    shown, mark = caught.value.pointer().split("\n")
    assert mark.index("^") == column
    assert len(shown) <= 2_000


@given(st.text(alphabet="@()<>=~!'\" andorotif:.*?[]\\/0123456789eλ-+_", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_understood_or_refused_with_one_line(text: str) -> None:
    try:
        condition = filters.compile(text)
    except FilterError as error:
        assert "\n" not in str(error).replace("\\n", "")
    else:
        condition.sql()


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("step:3", (3, 3)),
        ("step:3-5 and @nan", (3, 5)),
        ("@nan and (step>=2 and step<7)", (2, 7)),
        ("step>1.5", (1, None)),
        ("step:3 or step:5", (None, None)),
        ("not step:3", (None, None)),
        ("step!=3", (None, None)),
        ("step>inf", (None, None)),
    ],
)
def test_the_steps_of_an_expression_tell_which_files_to_leave_out(
    text: str, bounds: tuple[int | None, int | None]
) -> None:
    assert filters.compile(text).steps == bounds
