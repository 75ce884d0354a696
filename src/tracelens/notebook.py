"""Traces and sessions in a notebook: how they are shown, and the cell magic ``%%trace``.

``%load_ext tracelens`` registers the magic::

    %%trace run.tltrace --capture ops --nonfinite raise
    for batch in loader:
        train_step(batch)

Every text of a trace is escaped, and what is shown holds no script.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
from typing import TYPE_CHECKING, Any, NoReturn

from tracelens.config import CAPTURES, NONFINITES
from tracelens.errors import TraceLensError

if TYPE_CHECKING:
    from pathlib import Path

    from tracelens.session import Session
    from tracelens.storage.reader import TraceReader

_MAX_FINDINGS = 5
_FRAME = "border:1px solid var(--faint);border-radius:8px;padding:.8rem 1rem;max-width:60rem"


def trace_html(reader: TraceReader) -> str:
    """Return a trace in short: its verdict, first cause, findings and loss.

    Args:
        reader: an open trace.
    """
    from tracelens.diagnosis import diagnose
    from tracelens.overview import overview
    from tracelens.plots import findings
    from tracelens.plots.charts import charts_of
    from tracelens.plots.drawing import figure

    why = diagnose(reader)
    seen = overview(reader, top=1)
    charts = charts_of(reader, ("loss", "gradients"))
    drawn = "".join(figure(chart, with_table=False) for chart in charts if chart.body is not None)
    problems = [
        {"severity": "warning", "step": None, "rule": "damage", "message": line, "times": 1}
        for line in seen["trace"]["problems"]
    ]
    parts = [
        findings.verdict_line(why),
        findings.cause(why),
        findings.listed([*problems, *seen["findings"][:_MAX_FINDINGS]]),
        drawn,
        _facts(reader, seen),
    ]
    return _framed(reader.path.name, "".join(parts))


def session_html(session: Session, state: str) -> str:
    """Return a session in short: where it records, how far it is, what it found.

    Args:
        session: open or closed.
        state: which of the two.
    """
    from tracelens.plots import findings
    from tracelens.plots.drawing import text

    config = session.config
    lines = [
        f"<p>{text(state)}, step {session.current_step}, capture={text(config.capture)}, "
        f"nonfinite={text(config.nonfinite)}</p>"
    ]
    found = [{**each, "times": 1} for each in session.findings[:_MAX_FINDINGS]]
    lines.append(findings.listed(found) or "<p>Nothing non-finite found so far.</p>")
    lines.append(f"<p>Open it: <code>tl.load({text(repr(str(session.path)))})</code></p>")
    return _framed(session.path.name, "".join(lines))


def load_ipython_extension(shell: Any) -> None:
    """Register ``%%trace`` (IPython calls this for ``%load_ext tracelens``).

    Args:
        shell: the ``InteractiveShell``.
    """

    def trace(line: str, cell: str) -> Any:
        return _trace_cell(shell, line, cell)

    trace.__doc__ = _parser().format_help()
    shell.register_magic_function(trace, "cell", "trace")


class _Parser(argparse.ArgumentParser):
    """A parser that raises IPython's own error instead of ending the kernel."""

    def error(self, message: str) -> NoReturn:
        raise _usage(f"{message} ({' '.join(self.format_usage().split())})")


def _parser() -> _Parser:
    parser = _Parser(prog="%%trace", description="Record what the cell runs.", add_help=False)
    parser.add_argument("path", nargs="?", help="the trace to make (default: a new name)")
    parser.add_argument("--capture", choices=CAPTURES, default="guard")
    parser.add_argument("--nonfinite", choices=NONFINITES, default="record")
    parser.add_argument("--force", action="store_true", help="replace a trace of that name")
    return parser


def _usage(message: str) -> Exception:
    """Return the error that IPython shows as one line."""
    from IPython.core.error import UsageError

    error: Exception = UsageError(f"%%trace: {message}")
    return error


def _trace_cell(shell: Any, line: str, cell: str) -> Any:
    """Run a cell in a session and return its trace, which the notebook shows.

    What the cell raises is raised again, so that a notebook stops where it would have stopped.
    """
    import tracelens as tl

    try:
        words = shlex.split(line)
    except ValueError as unfinished:  # a quotation that does not end
        raise _usage(str(unfinished)) from None
    options = _parser().parse_args(words)
    if _awaits(shell, cell):
        raise _usage("a cell that awaits cannot be traced: write with tl.trace(...) in it instead")
    path = _place(options.path, force=options.force)
    error: BaseException | None = None
    recorded: Path | None = None
    try:
        with tl.trace(
            path, capture=options.capture, nonfinite=options.nonfinite, quiet=True
        ) as session:
            recorded = session.path
            error = _run_quietly(shell, cell)
            if error is not None:
                session.close(error)
    except tl.NonFiniteError as bad:
        error = bad
    except TraceLensError as refused:
        raise _usage(f"{refused} (--force replaces a trace)") from None
    # With TRACELENS=0 nothing was recorded.
    trace = tl.load(recorded) if recorded is not None else None
    if error is None:
        return trace
    if trace is not None:
        from IPython.display import display

        display(trace)
    raise error


def _awaits(shell: Any, cell: str) -> bool:
    """Tell whether a cell needs the event loop that runs the notebook already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return bool(shell.should_run_async(cell, transformed_cell=shell.transform_cell(cell)))


def _run_quietly(shell: Any, cell: str) -> BaseException | None:
    """Run a cell as IPython does, but leave its error to the caller."""
    shown, result = shell._showtraceback, shell.displayhook.exec_result
    shell._showtraceback = lambda *_: None
    try:
        done = shell.run_cell(cell)
    finally:
        shell._showtraceback = shown
        # The cell within ended; that of the magic is still to get its result.
        shell.displayhook.exec_result = result
    error: BaseException | None = done.error_in_exec or done.error_before_exec
    return error


def _place(path: str | None, *, force: bool) -> str | Path:
    """Return where the trace goes; a cell is run again and again, so its name may be taken."""
    import shutil
    from pathlib import Path

    from tracelens.tracepaths import default_path

    if path is None:
        return default_path("notebook")
    target = Path(path).expanduser()
    if target.suffix != ".tltrace":
        target = target.with_name(f"{target.name}.tltrace")
    if force and (target / "manifest.json").is_file():
        shutil.rmtree(target)
    return target


def _facts(reader: TraceReader, seen: dict[str, Any]) -> str:
    from tracelens.plots.drawing import text

    steps, ops = seen["steps"]["count"] or 0, seen["ops"]["recorded"] or 0
    ranks = len(reader.ranks())
    told = f"{steps:,} steps, {ops:,} ops, {ranks} rank{'s' if ranks != 1 else ''}"
    return (
        f'<p class="tl-soft">{told}. <code>tracelens view {text(reader.path.name)}</code> steps '
        "through it; <code>.ops.to_pandas()</code> and <code>.table(name)</code> give frames.</p>"
    )


def _framed(name: str, body: str) -> str:
    from tracelens.plots.drawing import text
    from tracelens.plots.page import style

    return (
        f'<div class="tl" style="{_FRAME}"><style>{style()}</style>'
        f"<p><strong>{text(name)}</strong></p>{body}</div>"
    )
