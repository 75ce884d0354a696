"""The words and signs of a filter expression."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<paren>[()]) | (?P<operator>>=|<=|==|!=|!~|>|<|=|~)
    | (?P<text>"[^"]*"|'[^']*') | (?P<word>[^\s()<>=!~"']+) | (?P<other>.)""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an expression.

    Attributes:
        kind: ``"word"``, ``"text"`` (quoted), ``"operator"``, ``"paren"`` or ``"other"``.
        text: as written, quotes included.
        column: 0-based position.
    """

    kind: str
    text: str
    column: int


def tokens(text: str) -> Iterator[Token]:
    """Yield the tokens of an expression.

    What follows ``~`` is a regular expression, in quotes or up to a space.

    Examples:
        >>> [token.text for token in tokens("op~^(log|exp)$ and nan>0")]
        ['op', '~', '^(log|exp)$', 'and', 'nan', '>', '0']
    """
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None
        kind, at = match.lastgroup or "", match.end()
        if kind != "space":
            yield Token(kind, match.group(), match.start())
        if match.group() in ("~", "!~"):
            at += len(text[at:]) - len(text[at:].lstrip())
            end = _regex_end(text, at)
            if end > at and text[at] not in "\"'":
                yield Token("word", text[at:end], at)
                at = end


def _regex_end(text: str, start: int) -> int:
    """Return where an unquoted regular expression ends: at a space or at a ) it did not open."""
    open_ = 0
    for at in range(start, len(text)):
        open_ += (text[at] == "(") - (text[at] == ")")
        if text[at].isspace() or open_ < 0:
            return at
    return len(text)
