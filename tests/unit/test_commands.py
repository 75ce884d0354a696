"""The command table: names that do not clash, help and documentation that are current, answers."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import numpy as np
import pytest

from trace_builder import training_run
from tracelens.commandhelp import help_lines, page
from tracelens.commands import TABLE, Context, names, run_line
from tracelens.cursor import Cursor
from tracelens.storage.reader import open_trace
from tracelens.storage.writer import ShardWriter

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
USUAL_LOCALS = set("x y h t g i o k v q loss grad op step hist out tl tf np torch".split())


@pytest.fixture
def context(tmp_path: Path, request: pytest.FixtureRequest) -> Context:
    """At the first of 24 ops; op 19 makes a NaN that reaches the loss."""
    reader = open_trace(training_run(tmp_path / "run.tltrace").close())
    request.addfinalizer(reader.close)
    return Context(Cursor(reader))


def ask(context: Context, line: str) -> str:
    answer = run_line(context, line)
    assert not answer.error, answer.lines
    return "\n".join(answer.lines)


def refused(context: Context, line: str) -> str:
    answer = run_line(context, line)
    assert answer.error
    assert len(answer.lines) == 1
    return answer.lines[0]


# The table


def test_every_name_and_alias_is_used_once() -> None:
    every = [name for spec in TABLE for name in (spec.name, *spec.aliases)]
    assert sorted(every) == names()
    assert len(set(every)) == len(every)


def test_names_at_the_debuggers_prompt_shadow_no_usual_variable_and_no_command_of_pdb() -> None:
    import pdb

    ours = [spec.pdb_name for spec in TABLE if spec.pdb_name]
    assert len(set(ours)) == len(ours)
    assert not USUAL_LOCALS & set(ours)
    assert not [name for name in ours if keyword.iskeyword(name) or len(name) < 2]
    assert not [name for name in ours if hasattr(pdb.Pdb, f"do_{name}")]
    wanted = set("so no ro co bo wa lt pt oi li lo why ps tui".split())
    assert wanted <= set(ours)


def test_the_documentation_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "python -m tracelens.commands > docs/commands.md"
    )


def test_help_tells_of_every_command() -> None:
    listed = "\n".join(help_lines(""))
    for spec in TABLE:
        assert spec.help.endswith(".")
        if spec.only != "tui":
            assert f"  {spec.name}" in listed
        told = help_lines(spec.name)
        assert spec.usage in told[0]


# Answers


def test_a_line_may_use_an_alias_an_argument_and_nothing_repeats_a_move(context: Context) -> None:
    assert "op 1 " in ask(context, "s")
    assert "op 4 " in ask(context, "step 3")
    assert "op 7 " in ask(context, "")
    ask(context, "where")
    assert ask(context, "") == "", "only moves are repeated"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("stepp", "did you mean 'step'?"),
        ("step x", "step: the number of steps is a whole number"),
        ("next 3", "next: this command takes no argument"),
        ("break absmax>foo", "break: 'foo' is not a number (column 8"),
        ("clear 7", "clear: there is no breakpoint 7"),
        ("goto", "goto what?"),
        ("print-tensor nothing", "no tensor 'nothing': out0, in0, or a stored one"),
        ("pt out7", "op 0 has no out7: it has 1 outputs"),
        ("pt out0[0]", "no values of out0 are stored"),
        ("pt out0]", "a [ is missing"),
        ("li 9", "there is no input 9"),
        ("li 1", "was written by no recorded op"),
        ("oi 999", "no op 999 was recorded"),
        ("up", "there is no frame further out"),
        ("export out0 a.txt", "must end in .npy"),
        ("export", "export where to?"),
        ("lt -s colour", "invalid choice"),
        ("lt -f 'a", "No closing quotation"),
        ("find", "find what?"),
        ("help nothing", "no command is called 'nothing'"),
        ("filter aten::log", "a key of the TUI"),
        ("watch in 9", "no recorded value"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_is_wrong(
    context: Context, line: str, says: str
) -> None:
    assert says in refused(context, line)
    assert context.cursor.op_id == 0


def test_goto_takes_ids_steps_positions_shares_and_marks(context: Context) -> None:
    for text, op_id in {
        "goto 5": 5, "g step 2": 16, "g step:1": 8, "g #4": 3, "g 50%": 11, "g last": 23,
        "g first": 0,
    }.items():  # fmt: skip
        ask(context, text)
        assert context.cursor.op_id == op_id, text
    ask(context, "g 19")
    assert "mark a is at op 19" in ask(context, "m a")
    ask(context, "g 1")
    ask(context, "' a")
    assert context.cursor.op_id == 19
    assert "a  op 19" in ask(context, "mark")
    assert "no mark is called 'b' (a)" in ask(context, "g b")


def test_breakpoints_are_listed_reached_and_cleared(context: Context) -> None:
    assert "no breakpoint" in ask(context, "bl")
    assert ask(context, "b aten::log") == "1  break  aten::log"
    assert ask(context, "wa nan>0") == "2  watch  nan>0"
    assert ask(context, "tb train.py:15").endswith("once")
    told = ask(context, "c")
    assert told.startswith("breakpoint 1: aten::log")
    assert "aten::log" in told.splitlines()[1]
    assert "breakpoint 3: train.py:15" in ask(context, "c")
    assert ask(context, "bl").splitlines() == ["1  break  aten::log", "2  watch  nan>0"]
    assert "removed 1" in ask(context, "cl 1")
    ask(context, "g first")
    assert "watch 2: nan>0" in ask(context, "c")
    assert context.cursor.op_id == 19
    ask(context, "cl")
    assert "no breakpoint" in ask(context, "b")


def test_a_watch_on_an_input_goes_back_to_what_wrote_it(context: Context) -> None:
    context.cursor.stop_at_findings = False
    ask(context, "g 20")
    assert "writes:304" in ask(context, "wa in 0")
    ask(context, "rc")
    assert context.cursor.op_id == 19


def test_inputs_and_outputs_are_walked(context: Context) -> None:
    ask(context, "g 23")
    told = ask(context, "li")
    assert "from op 21" in told
    ask(context, "li 0")
    assert context.cursor.op_id == 21
    ask(context, "li .")
    assert context.cursor.op_id == 19, "the first input that a bad op wrote"
    assert "op 20" in ask(context, "lo")
    ask(context, "lo .")
    assert context.cursor.op_id == 20


def test_op_info_tells_everything_recorded(context: Context) -> None:
    told = ask(context, "oi 19")
    for word in ("aten::exp", "forward", "step 2", "train.py:13", "hit", "inside", "1 nan of 6"):
        assert word in told
    assert "op 19" in ask(context, "oi 22"), "the forward op of a backward one"


def test_why_tells_the_first_cause_and_where_to_go(context: Context) -> None:
    told = ask(context, "why")
    assert "finding of the run" in told
    assert "`goto 19` goes to the first cause" in told
    ask(context, "g 20")
    assert "train.py:13" in ask(context, "why")


def test_frames_of_an_op_are_walked_up_and_down(context: Context) -> None:
    ask(context, "g 22")
    assert "train.py:13" in ask(context, "w")
    ask(context, "g 19")
    told = ask(context, "u")
    assert "train.py:12" in told.splitlines()[0]
    assert "op" in ask(context, "d").splitlines()[0]
    assert "further in" in refused(context, "d")


def test_print_source_annotates_lines_with_their_ops(context: Context, tmp_path: Path) -> None:
    ask(context, "g 19")
    told = ask(context, "ps")
    assert "the file is not here" in told
    assert re.search(r"-> +13", told)
    assert "! 19  aten::exp  forward  1 nan of 6" in told


def test_list_tensors_filters_sorts_and_limits(context: Context) -> None:
    ask(context, "g 16")
    lines = ask(context, "lt").splitlines()
    assert len(lines) == 9
    assert lines[1].startswith(">")
    assert [line.split()[1] for line in ask(context, "lt @bad").splitlines()[1:]] == [
        "19", "20", "21", "23",
    ]  # fmt: skip
    assert "and more" in ask(context, "lt -c 2")
    assert ask(context, "lt -a -t exp -c 9").count("aten::exp") == 3
    assert ask(context, "lt -r -c 3").splitlines()[1].split()[1] == "23"
    assert "aten::log" not in ask(context, "lt -x op=log")
    assert ask(context, "lt op=nothing") == "no op matches"
    assert "no values are stored" in ask(context, "lt -v")


def test_print_tensor_tells_statistics_and_where_it_is_bad(context: Context) -> None:
    ask(context, "g 19")
    told = ask(context, "pt")
    assert "1 nan of 6" in told
    assert "first non-finite at [1, 1]" in told
    assert 'capture="tensors"' in told
    assert "aten::exp in0" in ask(context, "pt in0")
    assert ask(context, "pt <0") == ask(context, "pt in0")


def test_a_hostile_name_in_a_trace_reaches_no_terminal(tmp_path: Path) -> None:
    from trace_builder import TraceBuilder

    trace = TraceBuilder(tmp_path / "run.tltrace")
    trace.op("aten::\x1b]0;owned\x07", module="a\nb", inputs=(0,))
    with open_trace(trace.close()) as reader:
        context = Context(Cursor(reader))
        for line in ("w", "lt", "oi", "pt", "li", "lo", "ps", "g 0"):
            for shown in run_line(context, line).lines:
                assert shown.isprintable(), (line, shown)


@pytest.fixture
def stored(tmp_path: Path, request: pytest.FixtureRequest) -> Context:
    """Two steps that stored a tensor called logits, 3 x 4, with a NaN in the second."""
    writer = ShardWriter(tmp_path / "run.tltrace", mode="stream", ring_bytes=1 << 16)
    for step in range(2):
        values = np.arange(12, dtype=np.float32).reshape(3, 4) + step
        if step:
            values[1, 2] = np.nan
        writer.tensor(step * 16, "logits", values.tobytes(), "float32", (3, 4), step, step)
        writer.event("step", step=step, start_ns=step, duration_ns=1, scalars={})
    writer.close()
    reader = open_trace(tmp_path / "run.tltrace")
    request.addfinalizer(reader.close)
    return Context(Cursor(reader))


def test_stored_values_are_listed_printed_sliced_and_exported(
    stored: Context, tmp_path: Path
) -> None:
    assert "logits" in ask(stored, "lt -v")
    told = ask(stored, "pt logits")
    assert "all finite" in told
    assert "█" in told
    assert ask(stored, "pt logits[1,:]").splitlines()[1].split() == ["[4.", "5.", "6.", "7.]"]
    assert ask(stored, "pt logits[-1, ::3]").splitlines()[1].split() == ["[", "8.", "11.]"]
    assert ask(stored, "pt logits[..., 0]").splitlines()[1].split() == ["[0.", "4.", "8.]"]
    for wrong in ("[x]", "[9]", "[0,0,0]", "[0:3:0]", "[__import__('os')]", "[]"):
        assert "[" in refused(stored, f"pt logits{wrong}")
    path = tmp_path / "out.npy"
    assert "written to" in ask(stored, f"export logits[:,1] {path}")
    assert np.load(path).tolist() == [1.0, 5.0, 9.0]
    assert "-f overwrites it" in refused(stored, f"export logits {path}")
    ask(stored, f"export logits {path} -f")
    assert np.load(path).shape == (3, 4)


def test_a_paused_programs_own_tensors_are_printed(context: Context) -> None:
    context.local = {"loss": np.array([1.0, np.inf], dtype=np.float32)}.__getitem__
    assert "1 of 2 not finite, first at [1]" in ask(context, "pt loss")
    assert ask(context, "pt loss[0]").splitlines()[1] == "  1."
