"""What mkdocs asks while it builds: the help of every verb, as the program prints it today."""

from __future__ import annotations

import os
from typing import Any

_MARK = "<!-- the help of every verb -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the help of every verb in place of its mark."""
    return markdown.replace(_MARK, _help_of_verbs()) if _MARK in markdown else markdown


def _help_of_verbs() -> str:
    os.environ["COLUMNS"] = "100"
    from tracelens.cli import VERBS, _load

    helps = ((verb, _load(verb).parser().format_help().rstrip()) for verb in VERBS)
    return "\n".join(f"## {verb}\n\n```text\n{text}\n```\n" for verb, text in helps)
