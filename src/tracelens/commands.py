"""THE command table: every command of every face, once.

The keys, palette, footers and help of the TUI, the prompt of `tracelens debug`, the commands at
`(Pdb++)` and docs/commands.md are made from ``TABLE``. ``python -m tracelens.commands`` prints the
documentation page.
"""

from __future__ import annotations

from tracelens.actions import moves, stops, tensors, views
from tracelens.command import Answer, CommandError, CommandSpec, Context
from tracelens.errors import TraceLensError

__all__ = ["TABLE", "Answer", "CommandError", "CommandSpec", "Context", "find", "run_line"]


def _ask_the_face(request: str) -> Answer:
    return Answer(request=request)


def _help(context: Context, arguments: str) -> Answer:
    from tracelens.commandhelp import help_lines

    return Answer(tuple(help_lines(arguments.strip(), context.width)))


def _tui_only(context: Context, arguments: str) -> Answer:
    raise CommandError("this is a key of the TUI: `tracelens view` opens it")


MOVING, STOPPING, LOOKING, PLACES, FACE = "Moving", "Stopping", "Looking", "Places", "The face"

TABLE: tuple[CommandSpec, ...] = (
    CommandSpec(
        "step", "Go to the next op: into modules, composite ops and the backward pass.",
        moves.step, MOVING, aliases=("s",), key="s", pdb_name="so", arguments="[N]",
    ),
    CommandSpec(
        "next", "Go to the next op at this depth: over modules inside this one.",
        moves.next_op, MOVING, aliases=("n",), key="n", pdb_name="no",
    ),
    CommandSpec(
        "return", "Go to the end of this composite op, or of this module's call.",
        moves.finish, MOVING, aliases=("r", "finish"), key="r", pdb_name="ro",
    ),
    CommandSpec(
        "continue", "Go on to the next breakpoint, watch or finding.",
        moves.resume, MOVING, aliases=("c", "cont"), key="c", pdb_name="co",
    ),
    CommandSpec(
        "reverse-step", "Go to the op before.",
        moves.reverse_step, MOVING, aliases=("rs",), key="S", arguments="[N]", pdb_name="rso",
    ),
    CommandSpec(
        "reverse-next", "Go back to the op before at this depth.",
        moves.reverse_next, MOVING, aliases=("rn",), key="N", pdb_name="rno",
    ),
    CommandSpec(
        "reverse-finish", "Go back to before this module's call.",
        moves.reverse_finish, MOVING, aliases=("rf",), key="R", pdb_name="rfo",
    ),
    CommandSpec(
        "reverse-continue", "Go back to the breakpoint, watch or finding before.",
        moves.reverse_resume, MOVING, aliases=("rc",), key="C", pdb_name="rco",
    ),
    CommandSpec(
        "next-finding", "Go to the next op that a finding names.",
        moves.next_finding, MOVING, aliases=("]", "nf"), key="]", pdb_name="fo",
    ),
    CommandSpec(
        "previous-finding", "Go to the op that a finding names before this one.",
        moves.previous_finding, MOVING, aliases=("[", "pf"), key="[",
    ),
    CommandSpec(
        "next-step", "Go to the first op of the next training step.",
        moves.next_training_step, MOVING, aliases=("}", "ns"), key="}",
    ),
    CommandSpec(
        "previous-step", "Go to the first op of this training step, or of the one before.",
        moves.previous_training_step, MOVING, aliases=("{",), key="{",
    ),
    CommandSpec(
        "up", "Go to the frame further out: the forward op's, the op's around.",
        views.up, MOVING, aliases=("u",), key="u", arguments="[N]",
    ),
    CommandSpec(
        "down", "Go to the frame further in.",
        views.down, MOVING, aliases=("d",), key="d", arguments="[N]",
    ),
    CommandSpec(
        "break", "Stop `continue` at ops that match; without SPEC, list breakpoints.",
        stops.break_at, STOPPING, aliases=("b",), key="b", asks=True, pdb_name="bo",
        arguments="[SPEC]",
        more=("SPEC: aten::log, encoder.layers.3.*, train.py:88, phase:backward, @nan, @inf, @bad,",
              "      @finding, absmax>1e4, op~softmax and nan>0, not (A or B)"),
    ),
    CommandSpec(
        "tbreak", "Stop once at an op that matches.",
        stops.break_once, STOPPING, aliases=("tb",), asks=True, arguments="SPEC",
    ),
    CommandSpec(
        "watch", "Stop where a condition turns true, or where a value is written and read.",
        stops.watch, STOPPING, aliases=("wa",), key="W", asks=True, pdb_name="wa",
        arguments="EXPR | in N | out N",
        more=("`watch absmax>1e4` stops at an op whose output exceeds it and did not the last time",
              "that line ran; `watch in 0`, then `reverse-continue`, goes to what wrote the value"),
    ),
    CommandSpec(
        "clear", "Remove a breakpoint by its number or text, or all of them.",
        stops.clear, STOPPING, aliases=("cl",), arguments="[N | SPEC]",
    ),
    CommandSpec(
        "breakpoints", "List breakpoints and watches.",
        stops.breakpoints, STOPPING, aliases=("bl",), key="B",
    ),
    CommandSpec(
        "where", "Show the module, the ops around and the source lines of this op.",
        views.where, LOOKING, aliases=("w",), key="w",
    ),
    CommandSpec(
        "list-tensors", "List the outputs of this training step's ops.",
        tensors.list_tensors, LOOKING, aliases=("lt",), key="1", pdb_name="lt",
        arguments="[EXPR] [-n REGEX] [-t OP] [-x EXPR] [-s id|name|module|time|size|absmax|bad] "
        "[-r] [-a] [-v] [-c N]",
        more=("-a of all steps, -v the stored values, -s sort, -r reversed, -c how many",),
    ),
    CommandSpec(
        "print-tensor", "Show a tensor: statistics, where it is not finite, values, histogram.",
        tensors.print_tensor, LOOKING, aliases=("pt",), key="p", pdb_name="pt",
        arguments="[out0 | in0 | NAME][[0,:,3]] [-a]",
        more=("-a prints every value; while a program is paused NAME may be an expression of it",),
    ),
    CommandSpec(
        "op-info", "Show everything recorded of this op.",
        views.op_info, LOOKING, aliases=("oi", "ni"), key="i", pdb_name="oi", arguments="[ID]",
    ),
    CommandSpec(
        "inputs", "List the inputs and what wrote them; with N, go to the producer of one.",
        views.inputs, LOOKING, aliases=("li",), key="<", key_arguments=".", pdb_name="li",
        arguments="[N]",
        more=("`inputs .` goes to the producer of the first non-finite input",),
    ),
    CommandSpec(
        "outputs", "List the outputs and what reads them; with N, go to a consumer.",
        views.outputs, LOOKING, aliases=("lo",), key=">", key_arguments=".", pdb_name="lo",
        arguments="[N]",
    ),
    CommandSpec(
        "why", "Explain this op's non-finite values back to their first cause.",
        views.why, LOOKING, key="e", pdb_name="why",
    ),
    CommandSpec(
        "print-source", "Show the source around this op, with the ops of each line.",
        views.print_source, LOOKING, aliases=("ps",), key="3", pdb_name="ps", arguments="[LINES]",
    ),
    CommandSpec(
        "export", "Write a tensor's values to a .npy file.",
        tensors.export, LOOKING, key="E", asks=True,
        arguments="[out0 | NAME][[SLICE]] FILE.npy [-f]",
    ),
    CommandSpec(
        "goto", "Go to an op, a training step, a position, a share of the trace, or a mark.",
        moves.goto, PLACES, aliases=("g",), key="ctrl+g", asks=True, pdb_name="goto",
        arguments="ID | step N | #N | N% | first | last | MARK",
    ),
    CommandSpec(
        "mark", "Remember this position under a name; without one, list the marks.",
        moves.mark, PLACES, aliases=("m",), key="m", asks=True, arguments="[NAME]",
    ),
    CommandSpec(
        "jump", "Go to a mark.",
        moves.jump, PLACES, aliases=("'",), key="'", asks=True, arguments="NAME",
    ),
    CommandSpec(
        "find", "Go to the next op that matches; without EXPR, of the last search.",
        moves.find, PLACES, aliases=("/",), key="/", asks=True, arguments="[EXPR]",
    ),
    CommandSpec(
        "find-next", "Go to the next match of the last search.",
        moves.find, PLACES, aliases=(".",), key=".",
    ),
    CommandSpec(
        "find-previous", "Go to the previous match, or search backwards.",
        moves.find_back, PLACES, aliases=(",",), key=",", arguments="[EXPR]",
    ),
    CommandSpec(
        "filter", "Show only ops that match; without EXPR, all of them.",
        _tui_only, FACE, key="f", asks=True, arguments="[EXPR]", only="tui",
    ),
    CommandSpec("zoom", "Give one pane the whole screen, or give it back.",
                _tui_only, FACE, key="z", only="tui"),
    CommandSpec("pause", "Stop following a live run, or follow it again; recording goes on.",
                _tui_only, FACE, key="space", only="tui"),
    CommandSpec("copy", "Copy what is selected to the clipboard (OSC 52).",
                _tui_only, FACE, key="y", only="tui"),
    CommandSpec("tui", "Go to the terminal interface, at this op.",
                lambda context, arguments: _ask_the_face("tui"), FACE, pdb_name="tui",
                only="prompt"),
    CommandSpec("debug", "Go to the debugger's prompt, at this op.",
                lambda context, arguments: _ask_the_face("debug"), FACE, key="D", only="tui"),
    CommandSpec("help", "List the commands, or explain one.", _help, FACE, aliases=("h", "?"),
                key="?", arguments="[COMMAND]"),
    CommandSpec("quit", "Leave.", lambda context, arguments: _ask_the_face("quit"), FACE,
                aliases=("q", "exit"), key="q"),
)  # fmt: skip
"""Every command, in the order of the help."""

_BY_NAME = {name: spec for spec in TABLE for name in (spec.name, *spec.aliases)}


def find(name: str) -> CommandSpec | None:
    """Return the command with a name or alias, ``None`` if there is none."""
    return _BY_NAME.get(name)


def names() -> list[str]:
    """Return every name and alias, sorted."""
    return sorted(_BY_NAME)


def run_line(context: Context, line: str) -> Answer:
    """Run one line of a prompt; a fault is an answer, never an exception.

    An empty line repeats the last one that moved.
    """
    text = line.strip() or context.last
    if not text:
        return Answer()
    head, _, rest = text.partition(" ")
    spec = find(head)
    if spec is None and text[0] in "/.,'?":
        head, rest = text[0], text[1:]
        spec = find(head)
    if spec is None:
        import difflib

        close = difflib.get_close_matches(head, names(), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        return Answer((f"no command is called {head!r}{meant} (`help` lists them)",), error=True)
    try:
        answer = spec.run(context, rest)
    except TraceLensError as error:
        return Answer((f"{spec.name}: {error}",), error=True)
    context.last = text if answer.moved else ""
    return answer


if __name__ == "__main__":
    import sys

    from tracelens.commandhelp import page

    sys.stdout.write(page())
