"""The verdict on a trace, its findings and its facts, as texts for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracelens.texts import printable

if TYPE_CHECKING:
    from tracelens.convert.tensorboard import Run

_MAX_FINDINGS = 50


def write(run: Run) -> None:
    """Write ``verdict``, ``findings`` (at the step of each) and ``run``."""
    begun_s = run.wall_time_s(0)
    if run.verdict:
        run.events.text(begun_s, 0, "tracelens/verdict", _block(run.verdict))
    for finding in run.reader.findings(run.rank)[:_MAX_FINDINGS]:
        step = finding.get("step")
        step = step if isinstance(step, int) and step >= 0 else 0
        run.events.text(begun_s, step, "tracelens/findings", _block(_finding(finding)))
    run.events.text(begun_s, 0, "tracelens/run", _block("\n".join(_facts(run))))


def _finding(finding: dict[str, Any]) -> str:
    lines = [f"{finding.get('severity')}: {finding.get('rule')}", str(finding.get("message") or "")]
    if finding.get("advice"):
        lines.append(f"fix: {finding['advice']}")
    return "\n".join(lines)


def _facts(run: Run) -> list[str]:
    states = [state for state in run.reader.shards() if state.rank == run.rank]
    health = run.reader.health()
    return [
        f"trace      {run.reader.path}",
        f"rank       {run.rank} of {run.reader.manifest.world_size}",
        f"framework  {', '.join(sorted({state.framework for state in states}))}",
        f"state      {', '.join(state.state for state in states)}",
        *(f"problem    {line}" for line in health.lines()),
    ]


def _block(text: str) -> str:
    """Return a text as Markdown that shows it as it is: an indented block has no markup in it."""
    return "\n".join(f"    {printable(line)}" for line in text.splitlines())
