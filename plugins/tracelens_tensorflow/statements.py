"""Finds the line of an op within a statement of several lines, of which AutoGraph keeps only one.

AutoGraph writes a statement anew on one line, so every op of it seems to stand on the first. The
statement is read again, and the op looked for by the names of the functions that made it.
"""

from __future__ import annotations

import ast
import functools
import linecache
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MAX_FILE_LINES = 50_000

_OPERATORS: dict[str, type[ast.AST]] = {
    "AddV2": ast.Add,
    "Add": ast.Add,
    "StringJoin": ast.Add,
    "Sub": ast.Sub,
    "Mul": ast.Mult,
    "RealDiv": ast.Div,
    "Div": ast.Div,
    "FloorDiv": ast.FloorDiv,
    "FloorMod": ast.Mod,
    "Pow": ast.Pow,
    "MatMul": ast.MatMult,
    "BatchMatMulV2": ast.MatMult,
    "Neg": ast.USub,
    "LogicalNot": ast.Not,
    "Less": ast.Lt,
    "LessEqual": ast.LtE,
    "Greater": ast.Gt,
    "GreaterEqual": ast.GtE,
    "Equal": ast.Eq,
    "NotEqual": ast.NotEq,
}
"""Operators of Python by the op that they make."""

_SUBSCRIPT = "StridedSlice"


@dataclass(frozen=True, slots=True)
class Found:
    """A line within a statement.

    Attributes:
        line: 1-based.
        exact: False if several lines of the statement make such ops.
    """

    line: int
    exact: bool


@functools.lru_cache(maxsize=8192)
def line_within(file: str, line: int, op_type: str, makers: tuple[str, ...]) -> Found:
    """Return the line that an op of a statement stands on.

    Args:
        file: the user's file.
        line: a line of the statement.
        op_type: ``"Log"``.
        makers: names of the functions that made the op, from the user's frame inwards.
    """
    statement = _statement_at(_tree(file), line)
    if statement is None or statement.end_lineno == statement.lineno:
        return Found(line, True)
    names = {_plain(name) for name in (*makers, op_type)}
    lines = set(_lines(statement, op_type, names))
    if not lines:
        return Found(statement.lineno, True)
    return Found(min(lines), len(lines) == 1)


def _lines(statement: ast.stmt, op_type: str, names: set[str]) -> Iterator[int]:
    operator = _OPERATORS.get(op_type)
    for node in _expressions(statement):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name is not None and _plain(name) in names:
                yield _line_of_call(node)
        elif isinstance(node, ast.BinOp | ast.UnaryOp | ast.AugAssign):
            if operator is not None and isinstance(node.op, operator):
                yield node.lineno
        elif isinstance(node, ast.Compare):
            if operator is not None and any(isinstance(each, operator) for each in node.ops):
                yield node.lineno
        elif isinstance(node, ast.Subscript) and op_type == _SUBSCRIPT:
            yield node.lineno


def _line_of_call(node: ast.Call) -> int:
    """Return the line that Python itself would name: of a chain of methods, the method's."""
    if isinstance(node.func, ast.Attribute):
        return node.func.end_lineno or node.lineno
    return node.lineno


def _expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield what a statement itself evaluates, not the statements in it."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [
            child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)
        ]


def _statement_at(tree: ast.Module | None, line: int) -> ast.stmt | None:
    """Return the innermost statement around a line."""
    found: ast.stmt | None = None
    waiting: Sequence[ast.AST] = [] if tree is None else tree.body
    while waiting:
        inside = next(
            (
                node
                for node in waiting
                if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0)
            ),
            None,
        )
        if inside is None:
            break
        found = inside
        waiting = [
            child
            for block in ("body", "orelse", "finalbody", "handlers", "cases")
            for part in getattr(inside, block, ())
            for child in (part.body if isinstance(part, _WITH_BODY) else (part,))
        ]
    return found


_WITH_BODY = (ast.ExceptHandler, ast.match_case)


@functools.lru_cache(maxsize=64)
def _tree(file: str) -> ast.Module | None:
    lines = linecache.getlines(file)
    if not lines or len(lines) > _MAX_FILE_LINES:
        return None
    try:
        return ast.parse("".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


_VERSION = re.compile(r"_?v\d+$")


def _plain(name: str) -> str:
    """Return a function's or op's name in one form: ``where_v2``, ``Where`` are ``where``."""
    return _VERSION.sub("", name.lower()).replace("_", "")
