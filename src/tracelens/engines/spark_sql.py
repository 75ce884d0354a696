"""What a person's query may ask of Spark: one SELECT on the trace's own tables.

Spark has no locked-down mode as DuckDB has, so its own parser reads the query first, and every
part of the parsed query has to be of a known, harmless kind: relations only by the names of the
trace's tables and views (never a path or another catalog), no commands, no scripts, no functions
that call Java or read files. What is not known is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tracelens.storage import views
from tracelens.storage.sql import QueryRefused

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PLANS = frozenset({
    "Aggregate", "CTERelationDef", "CTERelationRef", "Deduplicate", "Distinct", "Except", "Filter",
    "Generate", "GlobalLimit", "Intersect", "Join", "LateralJoin", "Limit", "LocalLimit",
    "LocalRelation", "Offset", "OneRowRelation", "Pivot", "Project", "Range", "Repartition", "Sort",
    "SubqueryAlias", "Unpivot", "Union", "UnresolvedHaving", "UnresolvedHint",
    "UnresolvedInlineTable", "UnresolvedRelation", "UnresolvedSubqueryColumnAliases",
    "UnresolvedTableValuedFunction", "UnresolvedTVFAliases", "UnresolvedWith", "UsingJoin",
    "Window", "WithCTE", "WithWindowDefinition", "UnresolvedQualify", "LimitAll",
})  # fmt: skip
_TABLE_FUNCTIONS = frozenset({"range", "explode", "explode_outer", "posexplode", "stack", "inline"})
_FUNCTIONS_REFUSED = re.compile(
    r"(?:try_)?(?:reflect|java_method)|input_file_\w+|from_avro|to_avro|schema_of_avro"
    r"|from_protobuf|to_protobuf|raise_error|assert_true|sleep|http_\w+|ai_\w+|read_\w+"
)
_MAX_NODES = 5_000


def check(spark: SparkSession, text: str) -> None:
    """Refuse a query that is not one SELECT on the trace's tables.

    Raises:
        QueryRefused: one line says why.
    """
    if not text.strip():
        raise QueryRefused("the query is empty: give one SELECT statement")
    try:
        plan = spark._jsparkSession.sessionState().sqlParser().parsePlan(text)
    except Exception as error:
        raise QueryRefused(short(error)) from None
    _Walk().plan(plan)


class _Walk:
    """Looks at every plan and expression of a parsed query."""

    def __init__(self) -> None:
        self._names = {name.lower() for name in views.names()}
        self._left = _MAX_NODES

    def plan(self, plan: Any) -> None:
        kind = self._count(plan)
        if kind not in _PLANS:
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).replace("$", "")
            raise QueryRefused(f"only SELECT and WITH read a trace; this is {name}")
        if kind == "UnresolvedWith":
            named = _items(plan.cteRelations())
            # A name may be used by the queries after it, and by its own where it recurs.
            self._names.update(str(entry._1()).lower() for entry in named)
            for entry in named:
                self.plan(entry._2())
        if kind == "UnresolvedRelation":
            self._relation(_texts(plan.multipartIdentifier()))
        if kind == "UnresolvedTableValuedFunction":
            name = ".".join(_texts(plan.name())).lower()
            if name not in _TABLE_FUNCTIONS:
                raise QueryRefused(f"the table function {name} is not available on a trace")
        for expression in _items(plan.expressions()):
            self._expression(expression)
        for subquery in _items(plan.subqueries()):
            self.plan(subquery)
        for child in _items(plan.children()):
            self.plan(child)

    def _relation(self, parts: list[str]) -> None:
        if len(parts) != 1 or parts[0].lower() not in self._names:
            shown = ".".join(parts)[:80]
            raise QueryRefused(f"{shown} is no table of a trace; see docs/format.md")

    def _expression(self, expression: Any) -> None:
        kind = self._count(expression)
        if "UnresolvedIdentifier" in kind or kind in ("PythonUDF", "ScalaUDF"):
            raise QueryRefused(f"{kind} is not available on a trace")
        if kind == "UnresolvedFunction":
            name = ".".join(_texts(expression.nameParts())).lower()
            if "." in name or _FUNCTIONS_REFUSED.fullmatch(name):
                raise QueryRefused(f"the function {name} is not available on a trace")
        for child in _items(expression.children()):
            self._expression(child)

    def _count(self, node: Any) -> str:
        self._left -= 1
        if self._left < 0:
            raise QueryRefused("the query is too long")
        return str(node.getClass().getSimpleName()).rstrip("$")


def _items(sequence: Any) -> list[Any]:
    return [sequence.apply(index) for index in range(sequence.length())]


def _texts(sequence: Any) -> list[str]:
    return [str(item) for item in _items(sequence)]


def short(error: BaseException) -> str:
    """Shorten a Spark error to one line, without its Java stack."""
    text = str(error)
    if "An error occurred while calling" in text and hasattr(error, "java_exception"):
        text = str(error.java_exception.getMessage())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept: list[str] = []
    for line in lines:
        if line.startswith(("== SQL ==", "== DataFrame ==", "at org.", "JVM stacktrace", "'")):
            break
        kept.append(line)
    told = " ".join(kept) or type(error).__name__
    return told if len(told) <= 300 else told[:297] + "..."
