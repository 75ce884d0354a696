"""Commands about tensors: list them, print one, export one."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tracelens import filters
from tracelens.actions.values import Named, named, sliced, value_lines
from tracelens.command import Answer, CommandError, Context
from tracelens.events import Op
from tracelens.optext import glyph, stats_lines, tensor_text
from tracelens.predicates import And, Number
from tracelens.texts import duration, printable, size, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LISTED = 40
_LOOKED_AT = 5_000
"""Ops of one training step that a sorted list looks at."""

_STORED = ("name", "step", "op_id", "dtype", "shape")
_SORTS: dict[str, Callable[[Op], Any]] = {
    "id": lambda op: op.op_id,
    "name": lambda op: op.name,
    "module": lambda op: op.module,
    "time": lambda op: -(op.duration_ns or 0),
    "size": lambda op: -_of_stats(op, "numel"),
    "absmax": lambda op: -_absmax(op),
    "bad": lambda op: -_of_stats(op, "nonfinite"),
}


class _Options(argparse.ArgumentParser):
    """Options of a command: a fault is one line, and nothing exits."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(message)


def list_tensors(context: Context, arguments: str) -> Answer:
    """List the outputs of this training step's ops, or of all that match."""
    parser = _Options(prog="list-tensors", add_help=False)
    parser.add_argument("-f", "--filter", default="")
    parser.add_argument("-n", "--name", default="")
    parser.add_argument("-t", "--type", default="")
    parser.add_argument("-x", "--exclude", default="")
    parser.add_argument("-s", "--sort", choices=_SORTS, default="id")
    parser.add_argument("-r", "--reverse", action="store_true")
    parser.add_argument("-a", "--all", action="store_true")
    parser.add_argument("-v", "--values", action="store_true")
    parser.add_argument("-c", "--count", type=int, default=_LISTED)
    parser.add_argument("more", nargs="*")
    options = parser.parse_args(_split(arguments))
    if options.values:
        return _stored(context, max(1, options.count))
    parts = [options.filter, *options.more]
    parts += [f'op~"{options.type}"'] if options.type else []
    parts += [f'module~"{options.name}" or op~"{options.name}"'] if options.name else []
    parts += [f"not ({options.exclude})"] if options.exclude else []
    texts = [f"({part})" for part in parts if part]
    cursor = context.cursor
    findings = cursor.findings.op_ids() if "@finding" in arguments else ()
    node: Any = filters.compile(" and ".join(texts), findings).node if texts else None
    step = cursor.op.step if cursor.op is not None and not options.all else None
    if step is not None:
        of_step = Number("step", "=", step)
        node = of_step if node is None else And((of_step, node))
    elif node is None:
        node = Number("id", ">=", 0)
    count = max(1, options.count)
    sorts = options.sort != "id" or options.reverse
    found = cursor.reader.find(
        node,
        rank=cursor.rank,
        first_step=step,
        last_step=step,
        limit=_LOOKED_AT if sorts else count + 1,
        progress=cursor.progress,
        cancelled=cursor.cancelled,
    )
    ops = cursor.ops(found.op_ids)
    ops.sort(key=_SORTS[options.sort], reverse=options.reverse)
    return Answer(tuple(_table_of(ops[:count], cursor.op_id, more=len(ops) > count)))


def print_tensor(context: Context, arguments: str) -> Answer:
    """Show a tensor: statistics, where it is not finite, values, a slice, a histogram."""
    words = arguments.split()
    everything = "-a" in words
    target, index = _target(" ".join(word for word in words if word != "-a"))
    tensor = named(context, target)
    lines = [f"{tensor.title}  {_head(tensor)}".rstrip()]
    if tensor.record is not None and not index:
        lines += [f"  {line}" for line in stats_lines(tensor.record)]
    if tensor.values is None:
        if index or everything:
            raise CommandError(f"no values of {target or 'out0'} are stored: {_how()}")
        if tensor.record is not None:
            lines.append(f"  its values are not stored: {_how()}")
    else:
        lines += [f"  {line}" for line in value_lines(tensor.values, index, everything=everything)]
    return Answer(tuple(printable(line) for line in lines))


def export(context: Context, arguments: str) -> Answer:
    """Write a tensor's values to a .npy file."""
    import numpy as np

    words = _split(arguments)
    force = "-f" in words
    words = [word for word in words if word != "-f"]
    if not words:
        raise CommandError("export where to? `export out0 FILE.npy`")
    path = Path(words[-1])
    target, index = _target(" ".join(words[:-1]))
    if path.suffix != ".npy":
        raise CommandError(f"the file must end in .npy, not {path.name!r}")
    tensor = named(context, target)
    if tensor.values is None:
        raise CommandError(f"no values of {target or 'out0'} are stored: {_how()}")
    values: NDArray[Any] = sliced(tensor.values, index) if index else tensor.values
    try:
        with open(path, "wb" if force else "xb") as file:
            np.save(file, np.ascontiguousarray(values), allow_pickle=False)
    except FileExistsError:
        raise CommandError(f"{path} exists; -f overwrites it") from None
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None
    return Answer((f"{tensor.title} {list(values.shape)} {values.dtype} written to {path}",))


def _stored(context: Context, count: int) -> Answer:
    rows = [row for row in context.cursor.reader.tensors() if row["rank"] == context.cursor.rank]
    if not rows:
        return Answer((f"no values are stored: {_how()}",))
    body = [
        [
            row["name"],
            row["step"],
            row["op_id"],
            row["dtype"],
            row["shape"],
            size(row["size_bytes"]),
        ]
        for row in rows[:count]
    ]
    lines = table(["name", "step", "op", "dtype", "shape", "size"], body).splitlines()
    if len(rows) > count:
        lines.append(f"and {len(rows) - count:,} more; -c N shows more")
    return Answer(tuple(lines))


def _table_of(ops: list[Op], here: int, *, more: bool) -> list[str]:
    if not ops:
        return ["no op matches"]
    rows = []
    for op in ops:
        sign = (">" if op.op_id == here else " ") + glyph(op)
        shown = tensor_text(op.outputs[0]) if op.outputs else ""
        rows.append(
            [sign, op.op_id, op.step, op.phase.label, op.module or "-", op.name,
             duration(op.duration_ns), shown]
        )  # fmt: skip
    columns = ["", "op", "step", "phase", "module", "name", "time", "output"]
    lines = table(columns, rows).splitlines()
    return [*lines, "and more; -c N shows more, -f EXPR fewer"] if more else lines


def _head(tensor: Named) -> str:
    if tensor.record is not None and (tensor.record.dtype or tensor.record.shape is not None):
        return tensor_text(tensor.record)
    if tensor.values is not None:
        return f"{tensor.values.dtype}{list(tensor.values.shape)}"
    return ""


def _target(text: str) -> tuple[str, str]:
    """Split ``logits[0,:,3]`` into the name and the index with its brackets."""
    text = text.strip()
    if not text.endswith("]"):
        return text, ""
    head, bracket, index = text.partition("[")
    if not bracket:
        raise CommandError(f"a [ is missing in {text!r}")
    return head.strip(), bracket + index


def _how() -> str:
    return 'record with capture="tensors", or name it with tl.tap(x, "name")'


def _split(arguments: str) -> list[str]:
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise CommandError(f"{error}: {arguments!r}") from None


def _of_stats(op: Op, name: str) -> int:
    stats = op.outputs[0].stats if op.outputs else None
    return 0 if stats is None else int(getattr(stats, name))


def _absmax(op: Op) -> float:
    stats = op.outputs[0].stats if op.outputs else None
    if stats is None or stats.vmin is None or stats.vmax is None:
        return 0.0
    return max(abs(stats.vmin), abs(stats.vmax))
