"""Commands for breakpoints and watches."""

from __future__ import annotations

import re

from tracelens.command import Answer, CommandError, Context

_INPUT_OR_OUTPUT = re.compile(r"(in|out|<|>)\s?(\d{1,4})?")


def break_at(context: Context, arguments: str) -> Answer:
    """Add a breakpoint, or list them."""
    return _add(context, arguments, watch=False, once=False)


def break_once(context: Context, arguments: str) -> Answer:
    """Add a breakpoint that is removed when it is reached."""
    return _add(context, arguments, watch=False, once=True)


def watch(context: Context, arguments: str) -> Answer:
    """Stop where a condition turns true, or where a value is written and read."""
    return _add(context, _value(context, arguments.strip()), watch=True, once=False)


def clear(context: Context, arguments: str) -> Answer:
    """Remove breakpoints."""
    text = arguments.strip()
    gone = context.cursor.breaks.remove(int(text) if text.isdecimal() else text or None)
    return Answer(tuple(f"removed {each}" for each in gone) or ("there is no breakpoint",))


def breakpoints(context: Context, arguments: str) -> Answer:
    """List breakpoints and watches."""
    if arguments.strip():
        return break_at(context, arguments)
    lines = tuple(str(each) for each in context.cursor.breaks)
    return Answer(lines or ("no breakpoint; `break aten::log` sets one",))


def _add(context: Context, arguments: str, *, watch: bool, once: bool) -> Answer:
    text = arguments.strip()
    if not text:
        return breakpoints(context, "")
    # What a value's readers and writers do is told at each of them, not at a turn.
    of_value = re.match(r"(reads|writes):", text) is not None
    added = context.cursor.breaks.add(text, watch=watch and not of_value, once=once)
    return Answer((str(added),))


def _value(context: Context, text: str) -> str:
    """Turn ``in 0`` or ``out 1`` into the readers and the writer of that value."""
    found = _INPUT_OR_OUTPUT.fullmatch(text)
    op = context.cursor.op
    if found is None or op is None:
        return text
    side = op.inputs if found[1] in ("in", "<") else op.outputs
    slot = int(found[2] or 0)
    if slot >= len(side) or side[slot].value_id < 0:
        raise CommandError(f"this op has no recorded value {text!r}; `inputs` lists them")
    value = side[slot].value_id
    return f"reads:{value} or writes:{value}"
