"""Commands that show what is at the position: op, neighbours, frames, explanation, source."""

from __future__ import annotations

from tracelens.actions.sources import annotated
from tracelens.command import Answer, CommandError, Context, moved, number_argument
from tracelens.events import STRUCTURAL, Op, OpFlag, Source, TensorRecord
from tracelens.optext import op_line, place, position_lines, stats_text, tensor_text
from tracelens.texts import duration, printable

_LISTED = 40


def where(context: Context, arguments: str) -> Answer:
    """Show the module, the composite ops around, and the source lines of the op."""
    op = _op(context)
    lines = list(position_lines(context.cursor))
    lines += [f"  module  {op.module or '(none)'}"]
    for number, (label, source) in enumerate(frames(context, op)):
        sign = ">" if number == context.frame else " "
        lines.append(f"{sign} {label:8}  {_frame_text(source)}")
    return Answer(tuple(printable(line) for line in lines))


def up(context: Context, arguments: str) -> Answer:
    """Go to the frame further out: the op around, the forward op."""
    return _to_frame(context, context.frame + number_argument(arguments, "the number", 1))


def down(context: Context, arguments: str) -> Answer:
    """Go to the frame further in."""
    return _to_frame(context, context.frame - number_argument(arguments, "the number", 1))


def frames(context: Context, op: Op) -> list[tuple[str, Source]]:
    """Return the source lines an op has: its own, its forward op's, those of the ops around."""
    cursor = context.cursor
    found: list[tuple[str, Source]] = []
    if op.source is not None:
        found.append(("op", op.source))
    forward = cursor.reader.op(op.fwd_op_id, cursor.rank) if op.fwd_op_id >= 0 else None
    if forward is not None and forward.source is not None:
        found.append(("forward", forward.source))
    for around in cursor.reader.parents(op.op_id, cursor.rank):
        if around.source is not None:
            found.append(("in " + around.name.rpartition("::")[2], around.source))
    return list({(frame.file, frame.line): (label, frame) for label, frame in found}.values())


def op_info(context: Context, arguments: str) -> Answer:
    """Show everything recorded of the op."""
    op = _op(context, arguments)
    flags = ", ".join(str(flag.name).lower() for flag in OpFlag if op.flags & flag)
    rows = [
        ("op", f"{op.name}  id {op.op_id}"),
        ("phase", f"{op.phase.label}, step {op.step}, rank {op.rank}, thread {op.tid}"),
        ("module", op.module or "(none)"),
        ("source", _frame_text(op.source) if op.source else "(unknown)"),
        ("time", f"{duration(op.duration_ns)}, started at {duration(op.start_ns)}"),
        ("flags", flags or "(none)"),
    ]
    if op.fwd_op_id >= 0:
        forward = context.cursor.reader.op(op.fwd_op_id, context.cursor.rank)
        rows.append(("forward", f"op {op.fwd_op_id}" if forward is None else op_line(forward)))
    for around in context.cursor.reader.parents(op.op_id, context.cursor.rank):
        rows.append(("inside", op_line(around)))
    rows += [(f"in {n}", _tensor(t)) for n, t in enumerate(op.inputs)]
    rows += [(f"out {n}", _tensor(t)) for n, t in enumerate(op.outputs)]
    for each in context.cursor.findings.at(op.op_id):
        rows.append(("finding", str(each.get("message", ""))))
    return Answer(tuple(printable(f"{label:8}  {text}") for label, text in rows))


def inputs(context: Context, arguments: str) -> Answer:
    """List the inputs and their producers, or go to the producer of one."""
    op = _op(context)
    producers = context.cursor.producers()
    text = arguments.strip()
    if text:
        slot = _worst(op, producers) if text == "." else _slot(text, len(op.inputs), "input")
        producer = producers[slot]
        if producer is None:
            raise CommandError(f"input {slot} was written by no recorded op: data or a parameter")
        return moved(context, context.cursor.goto(op_id=producer.op_id))
    rows = [f"{n}  {_tensor(t)}" for n, t in enumerate(op.inputs)]
    lines = []
    for row, producer in zip(rows, producers, strict=True):
        lines += [row, f"     from {op_line(producer) if producer else 'no recorded op'}"]
    return Answer(tuple(printable(line) for line in lines) or ("this op reads no tensor",))


def outputs(context: Context, arguments: str) -> Answer:
    """List the ops that read the outputs, or go to one of them."""
    op = _op(context)
    consumers = context.cursor.consumers(limit=_LISTED)
    text = arguments.strip()
    if text:
        number = 0 if text == "." else _slot(text, max(1, len(consumers)), "consumer")
        if not consumers:
            raise CommandError("no recorded op reads what this op wrote")
        return moved(context, context.cursor.goto(op_id=consumers[number].op_id))
    lines = [f"out {n}  {_tensor(t)}" for n, t in enumerate(op.outputs)]
    lines += [f"{n:5}  {op_line(each)}" for n, each in enumerate(consumers)]
    if not consumers:
        lines.append("no recorded op reads it")
    return Answer(tuple(printable(line) for line in lines))


def why(context: Context, arguments: str) -> Answer:
    """Explain the non-finite values of the op, or else the run's finding."""
    from tracelens.analysis.report import render

    _op(context)
    finding = context.cursor.why()
    lines: list[str] = []
    if finding is None:
        found = context.cursor.findings.all()
        known = [each for each in found if each.get("verdict") != STRUCTURAL]
        if not known:
            return Answer(("what this op read and wrote is finite, and so was all that mattered",))
        lines.append("what was measured of this op is finite; the finding of the run:")
        finding = known[0]
    lines += render(finding, width=context.width).splitlines()
    first = finding.get("first_cause") or {}
    if isinstance(first.get("op_id"), int) and first["op_id"] >= 0:
        lines.append(f"`goto {first['op_id']}` goes to the first cause")
    return Answer(tuple(lines))


def print_source(context: Context, arguments: str) -> Answer:
    """Show the source around the op, with the ops of each line."""
    op = _op(context)
    around = number_argument(arguments, "the number of lines", 6)
    known = frames(context, op)
    if not known:
        raise CommandError("no source line was recorded for this op")
    _, frame = known[min(context.frame, len(known) - 1)]
    return Answer(tuple(annotated(context.cursor, frame, min(around, 500))))


def _to_frame(context: Context, number: int) -> Answer:
    op = _op(context)
    known = frames(context, op)
    if not 0 <= number < len(known):
        raise CommandError("there is no frame further " + ("out" if number > 0 else "in"))
    context.frame = number
    label, frame = known[number]
    lines = [f"{label}  {_frame_text(frame)}", *annotated(context.cursor, frame, 3)]
    return Answer(tuple(printable(line) for line in lines))


def _op(context: Context, arguments: str = "") -> Op:
    text = arguments.strip()
    if text:
        op_id = number_argument(text, "an op id", 0)
        op = context.cursor.reader.op(op_id, context.cursor.rank)
        if op is None:
            raise CommandError(f"no op {op_id} was recorded")
        return op
    if context.cursor.op is None:
        raise CommandError("the trace holds no op")
    return context.cursor.op


def _slot(text: str, count: int, what: str) -> int:
    slot = number_argument(text, f"the {what}", 0)
    if slot >= count:
        raise CommandError(f"there is no {what} {slot}: it has {count}")
    return slot


def _worst(op: Op, producers: list[Op | None]) -> int:
    """Return the input to follow: the first non-finite one, else the first with a producer."""
    bad = [n for n, t in enumerate(op.inputs) if t.stats is not None and t.stats.nonfinite]
    known = [n for n, producer in enumerate(producers) if producer is not None]
    hit = [n for n in known if (p := producers[n]) is not None and p.flags & OpFlag.HIT]
    choice = [n for n in bad if n in known] or hit or known
    if not choice:
        raise CommandError("no input was written by a recorded op: data, or parameters")
    return choice[0]


def _tensor(tensor: TensorRecord) -> str:
    text = tensor_text(tensor)
    if tensor.parameter:
        text += "  parameter"
    if tensor.stats is None and not tensor.overwritten:
        text += "  not measured"
    if tensor.overwritten:
        text += "  overwritten by the op before it was measured"
    value = f"  value {tensor.value_id}" if tensor.value_id >= 0 else "  from outside"
    return (text + value).strip() if stats_text(tensor.stats) or text else value.strip()


def _frame_text(source: Source) -> str:
    code = f"  {source.code}" if source.code else ""
    return f"{place(source)} in {source.function or '?'}{code}"
