"""Commands that move the cursor: step, next, return, continue, their reverses, goto, marks."""

from __future__ import annotations

import re

from tracelens import filters
from tracelens.command import Answer, CommandError, Context, moved, number_argument

_MOST_STEPS = 1_000_000_000


def step(context: Context, arguments: str) -> Answer:
    """Go to the next op, or to the n-th."""
    return moved(context, context.cursor.step(_count(arguments)))


def reverse_step(context: Context, arguments: str) -> Answer:
    """Go to the op before, or to the n-th before."""
    return moved(context, context.cursor.reverse_step(_count(arguments)))


def next_op(context: Context, arguments: str) -> Answer:
    """Go to the next op at this depth."""
    _nothing(arguments)
    return moved(context, context.cursor.next())


def reverse_next(context: Context, arguments: str) -> Answer:
    """Go back to the op before at this depth."""
    _nothing(arguments)
    return moved(context, context.cursor.reverse_next())


def finish(context: Context, arguments: str) -> Answer:
    """Go to the end of this module's call."""
    _nothing(arguments)
    return moved(context, context.cursor.finish())


def reverse_finish(context: Context, arguments: str) -> Answer:
    """Go back to before this module's call."""
    _nothing(arguments)
    return moved(context, context.cursor.reverse_finish())


def resume(context: Context, arguments: str) -> Answer:
    """Go on to the next stop."""
    _nothing(arguments)
    return moved(context, context.cursor.resume())


def reverse_resume(context: Context, arguments: str) -> Answer:
    """Go back to the stop before."""
    _nothing(arguments)
    return moved(context, context.cursor.reverse_resume())


def next_finding(context: Context, arguments: str) -> Answer:
    """Go to the next op that a finding names."""
    _nothing(arguments)
    return moved(context, context.cursor.next_finding())


def previous_finding(context: Context, arguments: str) -> Answer:
    """Go to the op that a finding names before this one."""
    _nothing(arguments)
    return moved(context, context.cursor.previous_finding())


def next_training_step(context: Context, arguments: str) -> Answer:
    """Go to the first op of the next training step."""
    _nothing(arguments)
    return moved(context, context.cursor.next_training_step())


def previous_training_step(context: Context, arguments: str) -> Answer:
    """Go to the first op of this training step, or of the one before."""
    _nothing(arguments)
    return moved(context, context.cursor.previous_training_step())


def goto(context: Context, arguments: str) -> Answer:
    """Go to an op id, a training step, a position, a share of the trace, or a mark."""
    cursor, text = context.cursor, arguments.strip()
    found = re.fullmatch(r"(op|step|#|at)?[ :=]*(\d{1,18})(%?)", text)
    if not text:
        raise CommandError("goto what? 1234, step 12, #500, 50%, first, last or a mark's name")
    if text in ("first", "start"):
        return moved(context, cursor.goto(index=0))
    if text in ("last", "end"):
        return moved(context, cursor.goto(index=max(0, cursor.count - 1)))
    if found is None:
        return moved(context, cursor.jump(text))
    kind, number = found[1], int(found[2])
    if found[3]:
        return moved(context, cursor.goto(index=(cursor.count - 1) * min(number, 100) // 100))
    if kind == "step":
        return moved(context, cursor.goto(step=number))
    if kind == "#":
        return moved(context, cursor.goto(index=number - 1))
    return moved(context, cursor.goto(op_id=number))


def mark(context: Context, arguments: str) -> Answer:
    """Remember this position, or list the marks."""
    cursor, name = context.cursor, arguments.strip()
    if not name:
        names = cursor.marks.names(cursor.rank)
        rows = [f"{each}  op {cursor.marks.get(each, cursor.rank)}" for each in names]
        return Answer(tuple(rows) or ("no mark is set; `mark NAME` sets one here",))
    cursor.mark(name)
    return Answer((f"mark {name} is at op {cursor.op_id}",))


def jump(context: Context, arguments: str) -> Answer:
    """Go to a mark."""
    name = arguments.strip()
    return moved(context, context.cursor.jump(name)) if name else mark(context, "")


def find(context: Context, arguments: str) -> Answer:
    """Search forwards for an op."""
    return _search(context, arguments, back=False)


def find_back(context: Context, arguments: str) -> Answer:
    """Search backwards for an op."""
    return _search(context, arguments, back=True)


def _search(context: Context, arguments: str, *, back: bool) -> Answer:
    text = arguments.strip()
    if text:
        findings = context.cursor.findings.op_ids() if "@finding" in text else ()
        context.search = filters.compile(text, findings)
    if context.search is None:
        raise CommandError("find what? for example aten::log, train.py:88, @nan, absmax>1e4")
    return moved(context, context.cursor.find(context.search, back=back))


def _count(arguments: str) -> int:
    return min(max(1, number_argument(arguments, "the number of steps", 1)), _MOST_STEPS)


def _nothing(arguments: str) -> None:
    if arguments.strip():
        raise CommandError(f"this command takes no argument, not {arguments.strip()!r}")
