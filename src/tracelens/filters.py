"""Filter expressions: what `break`, `watch`, `find`, the search and the filter of the TUI take.

    aten::log                an op, by its name with or without namespace; * and ? match anything
    encoder.layers.3.*       a module (and what is inside it); a bare word is an op or a module
    train.py:88              a source line; train.py:80-95 a range, train.py any line of the file
    phase:backward  step:3   also op: module: file: function: code: device: dtype: shape: id:
    step:10-20               a range of steps
    @nan @inf @bad @finding  a non-finite output; the ops that the findings name
    absmax>1e4  duration>1ms a quantity compared with a number
    op~softmax  code!~relu   a regular expression found in a text, or not
    reads:118 writes:118     the ops that read, or wrote, a value (by its id)
    A and B, A or B, not A, (A), A if B

Nothing is evaluated as Python. A comparison with an unknown quantity is false.

Examples:
    >>> compile("op~softmax and nan>0").sql()[0].count("?")
    2
    >>> compile("absmax>big")
    Traceback (most recent call last):
    tracelens.filters.FilterError: 'big' is not a number (column 8 of 'absmax>big')
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from tracelens.errors import ConfigError
from tracelens.events import Op, OpFlag
from tracelens.predicates import (
    COMPARISONS,
    QUANTITIES,
    And,
    Flag,
    Mask,
    Node,
    Not,
    Number,
    OneOf,
    Or,
    Reads,
    Text,
    step_bounds,
    writes,
)
from tracelens.storage.chunks import Chunk
from tracelens.storage.opchunk import OpChunk
from tracelens.tokens import Token, tokens

_MAX_CHARACTERS = 2_000
_MAX_DEPTH = 40

_LINE = re.compile(r"(?P<file>[^:]+):(?P<low>\d+)(?:-(?P<high>\d+))?")
_FILE = re.compile(r".*\.(?:py|ipynb|pyx)")
_UNITS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
_TEXTS = {
    "op": "name",
    "name": "name",
    "module": "module",
    "phase": "phase",
    "file": "file",
    "function": "function",
    "code": "code",
    "device": "device",
    "dtype": "dtypes",
    "shape": "shapes",
}
"""Words for text columns -> the columns of ``ops``."""

WORDS = (
    *(f"{key}:" for key in (*_TEXTS, "step", "line", "id", "reads", "writes")),
    *QUANTITIES,
    "@nan", "@inf", "@bad", "@finding", "and", "or", "not",
)  # fmt: skip
"""What a prompt completes in an expression."""

_RANGES = {"step": "step", "line": "line", "id": "id", "rank": "rank", "tid": "tid"}
_PHASES = ("data", "forward", "backward", "optimizer", "other")
# What RE2 has no word for; the same expression must mean the same in SQL.
_PYTHON_ONLY = re.compile(r"\(\?(?:=|!|<=|<!|P=|\()|\\[1-9]")


class FilterError(ConfigError):
    """An expression that cannot be understood; the message is one line.

    Attributes:
        text: the expression.
        column: 0-based position of the fault in it.
    """

    def __init__(self, message: str, text: str, column: int) -> None:
        self.text = text
        self.column = column
        super().__init__(f"{message} (column {column + 1} of {text!r})")

    def pointer(self) -> str:
        """Return the expression and, in a second line, a mark below the fault."""
        return f"{self.text}\n{' ' * self.column}^"


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on ops (a ``storage.chunks.Predicate``).

    Attributes:
        text: the expression as written.
        node: the condition.
    """

    text: str
    node: Node

    def mask(self, chunk: Chunk) -> Mask:
        """Return which ops of a chunk satisfy it, shape (len,)."""
        return self.node.mask(chunk)

    @property
    def steps(self) -> tuple[int | None, int | None]:
        """The first and last training step that it can hold in; ``None`` for no bound."""
        return step_bounds(self.node)

    def matches(self, op: Op) -> bool:
        """Return whether one op satisfies it."""
        return bool(self.node.mask(OpChunk([op]))[0])

    def sql(self) -> tuple[str, list[Any]]:
        """Return a condition on the table ``ops`` and the values of its question marks."""
        return self.node.sql()

    def __str__(self) -> str:
        return self.text


def compile(text: str, findings: Iterable[int] = ()) -> Filter:
    """Read an expression.

    Args:
        text: the expression; see the module's docstring.
        findings: op ids that ``@finding`` stands for.

    Raises:
        FilterError: it cannot be understood; the message points at the spot.
    """
    if len(text) > _MAX_CHARACTERS:
        raise FilterError(f"longer than {_MAX_CHARACTERS} characters", text[:40] + "...", 0)
    return Filter(text.strip(), _Parser(text, frozenset(findings)).parse())


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str, findings: frozenset[int]) -> None:
        self._text = text
        self._findings = findings
        self._depth = 0
        self._tokens = list(tokens(text))
        self._at = 0

    def parse(self) -> Node:
        if not self._tokens:
            self._fail("an empty filter: name an op, a module, a line or a condition", 0)
        node = self._or()
        rest = self._peek()
        if rest is not None:
            self._fail(f"{rest.text!r} is not expected here; join with and / or", rest.column)
        return node

    def _or(self) -> Node:
        parts = [self._and()]
        while self._take("or"):
            parts.append(self._and())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self) -> Node:
        parts = [self._not()]
        while self._take("and") or self._take("if"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _not(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._fail("nested too deeply", self._column())
        try:
            if self._take("not"):
                return Not(self._not())
            if self._take("("):
                node = self._or()
                if not self._take(")"):
                    self._fail("a ) is missing", self._column())
                return node
            return self._term()
        finally:
            self._depth -= 1

    def _term(self) -> Node:
        token = self._peek()
        if token is None:
            self._fail("a condition is missing at the end", len(self._text.rstrip()))
        if token.kind not in ("word", "text") or token.text in ("and", "or", "if"):
            self._fail(f"a condition cannot begin with {token.text!r}", token.column)
        self._at += 1
        following = self._peek()
        if following is not None and following.kind == "operator":
            self._at += 1
            return self._comparison(token, following)
        if token.kind == "text":
            return self._pattern(token.text[1:-1])
        return self._word(token)

    def _comparison(self, field: Token, comparison: Token) -> Node:
        value = self._peek()
        if value is None or value.kind not in ("word", "text"):
            self._fail(f"a value is missing after {comparison.text}", self._column())
        self._at += 1
        text = value.text[1:-1] if value.kind == "text" else value.text
        if field.text in _TEXTS:
            return self._text_comparison(field, comparison, text, value)
        if field.text not in QUANTITIES:
            known = [*_TEXTS, *QUANTITIES]
            self._fail(
                f"no quantity is called {field.text!r}{_meant(field.text, known)}", field.column
            )
        if comparison.text not in COMPARISONS:
            self._fail(
                f"{field.text} is a number: {comparison.text} needs a text", comparison.column
            )
        number = _number(text, field.text)
        if number is None:
            self._fail(f"{text!r} is not a number", value.column)
        return Number(field.text, comparison.text, number)

    def _text_comparison(self, field: Token, comparison: Token, text: str, value: Token) -> Node:
        if comparison.text in ("~", "!~"):
            pattern = self._regex(text, value.column)
            return Text(_TEXTS[field.text], pattern, False, comparison.text == "!~")
        if comparison.text not in ("=", "==", "!="):
            self._fail(f"{field.text} is a text: compare it with = != ~ or !~", comparison.column)
        node = _match(field.text, text)
        return Not(node) if comparison.text == "!=" else node

    def _word(self, token: Token) -> Node:
        text = token.text
        if text.startswith("@"):
            return self._named(token)
        key, colon, value = text.partition(":")
        if colon and not value.startswith(":"):
            if not value and (quoted := self._peek()) is not None and quoted.kind == "text":
                self._at += 1
                value = quoted.text[1:-1]
            if key in _TEXTS or key in _RANGES or key in ("reads", "writes"):
                return self._keyed(key, value, token.column + len(key) + 1)
            line = _LINE.fullmatch(text)
            if line is not None:
                low, high = int(line["low"]), int(line["high"] or line["low"])
                bounds = (Number("line", ">=", low), Number("line", "<=", high))
                return And((_match("file", line["file"]), *bounds))
            known = [*_TEXTS, *_RANGES, "reads", "writes"]
            self._fail(f"no field is called {key!r}{_meant(key, known)}", token.column)
        if "::" not in text and _FILE.fullmatch(text):
            return _match("file", text)
        return self._pattern(text)

    def _pattern(self, text: str) -> Node:
        if "::" in text:
            return _match("op", text)
        return Or((_match("op", text), _match("module", text)))

    def _named(self, token: Token) -> Node:
        name = token.text[1:].lower()
        hit = Flag(int(OpFlag.HIT))
        # The counts are of the first output; a hit without any is in another one.
        elsewhere = And((hit, Not(Number("bad", ">", 0))))
        if name in ("bad", "nonfinite"):
            return hit
        if name in ("nan", "inf"):
            return Or((Number(name, ">", 0), elsewhere))
        if name in ("finding", "findings"):
            return OneOf(self._findings)
        if name.upper() in OpFlag.__members__:
            return Flag(int(OpFlag[name.upper()]))
        known = ["nan", "inf", "bad", "finding", *(flag.lower() for flag in OpFlag.__members__)]
        self._fail(f"there is no @{name}{_meant(name, known)}", token.column)

    def _keyed(self, key: str, value: str, column: int) -> Node:
        if not value:
            self._fail(f"a value is missing after {key}:", column)
        if key == "phase" and not set("*?") & set(value) and value not in _PHASES:
            self._fail(f"no phase is called {value!r}: {', '.join(_PHASES)}", column)
        if key in _TEXTS:
            return _match(key, value)
        if key in ("reads", "writes"):
            if not value.isdecimal():
                self._fail(f"{value!r} is not a value id", column)
            return Reads(int(value)) if key == "reads" else writes(int(value))
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", value)
        if match is None:
            self._fail(f"{value!r} is not a number or a range such as 3-5", column)
        low, high = int(match[1]), int(match[2] or match[1])
        return And((Number(_RANGES[key], ">=", low), Number(_RANGES[key], "<=", high)))

    def _regex(self, text: str, column: int) -> re.Pattern[str]:
        odd = _PYTHON_ONLY.search(text)
        if odd is not None:
            self._fail(f"{odd.group()} (look-around, back-reference) is not supported", column)
        try:
            return re.compile(f"(?is){text}")
        except (re.error, RecursionError, OverflowError) as error:
            self._fail(f"not a regular expression: {error}", column)

    def _peek(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self, text: str) -> bool:
        token = self._peek()
        if token is None or token.kind == "text" or token.text != text:
            return False
        self._at += 1
        return True

    def _column(self) -> int:
        token = self._peek()
        return len(self._text.rstrip()) if token is None else token.column

    def _fail(self, message: str, column: int) -> NoReturn:
        raise FilterError(message, self._text, column)


@lru_cache(maxsize=256)
def _match(field: str, glob: str) -> Text:
    """Return the condition that a text column matches a pattern with * and ?.

    An op may be named without its namespace and in any case, a module stands for what is inside
    it too, a file for any path that ends in it.
    """
    body = "".join({"*": ".*", "?": "."}.get(c) or re.escape(c) for c in glob)
    if field in ("op", "name"):
        pattern = f"(?is)(?:.*::)?{body}"
    elif field == "module":
        pattern = f"(?s){body}(?:[./].*)?"
    elif field == "file":
        pattern = f"(?s)(?:.*/)?{body}"
    elif field in ("dtype", "shape", "code"):
        pattern = f"(?s).*{body}.*"
    else:
        pattern = f"(?s){body}"
    return Text(_TEXTS[field], re.compile(pattern))


def _number(text: str, quantity: str) -> float | None:
    unit = 1.0
    if quantity in ("duration", "start"):
        found = re.fullmatch(r"(.*?)(ns|us|ms|s)", text)
        if found is not None:
            text, unit = found[1], _UNITS[found[2]]
    try:
        number = float(text)
    except ValueError:
        return None
    return number * unit if number == number else None


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
