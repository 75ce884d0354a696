"""What a running trace adds to the open one: new ops, steps, findings, and its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tracelens.errors import TraceLensError
from tracelens_tui.actions import Actions
from tracelens_tui.opening import state_of
from tracelens_tui.texts import safe

if TYPE_CHECKING:
    from tracelens.storage.reader import TraceReader
    from tracelens.storage.tail import News
    from tracelens_tui.follow import Follower
    from tracelens_tui.model import TraceModel

_MOST_UNSEALED = 4_000
"""Ops kept from the news before the snapshot is taken anew."""

_SHARE = 20
"""A new snapshot costs at most one part in this many of the time."""


class Live(Actions):
    """Follows a trace that is being written; pausing stops the screen, not the recording."""

    _follower: Follower | None = None
    _snapshot_due = 0.0

    def start_following(self) -> None:
        """Follow the trace if it is being written."""
        self._snapshot_due = 0.0
        model = self.model
        if model is None or model.state != "live":
            return
        model.following = True
        from tracelens_tui.follow import Follower

        self._follower = Follower(
            str(model.path), lambda news: self.call_later(self._take_news, model, news)
        )

    def end_following(self) -> None:
        """Stop looking for news."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.close()

    async def action_follow(self) -> None:
        """Go to the last op and, in a running trace, stay at the last."""
        model = self.model
        if model is None:
            return
        model.following = model.state == "live"
        self.to_last_row()
        self.tell_news()

    def action_toggle_follow(self) -> None:
        """Pause following, or go on."""
        model = self.model
        if model is None:
            return
        if model.state != "live":
            self.say("this trace is not being written to any more")
            return
        model.following = not model.following
        if model.following:
            self.to_last_row()
        self.tell_news()

    def to_last_row(self) -> None:
        """Make the last op the current one."""
        last = self.rows.count - 1
        op = self.rows.row(last)
        if last >= 0:
            self.set_position(last, op)

    async def _take_news(self, model: TraceModel, news: News) -> None:
        if model is not self.model:
            return
        for event in news.events:
            if event.get("rank", model.rank) == model.rank and event.get("t") == "step":
                model.story.steps.append(event)
            elif event.get("t") == "finding":
                self._take_finding(model, event)
            elif event.get("t") == "note":
                model.story.notes.append(event)
        ops = [op for op in news.ops if op.rank == model.rank and op.op_id > model.last_id]
        if ops:
            self.rows.extend(ops, gap=news.skipped + news.missed > 0)
            model.total = self.rows.total
        grown = self.rows.unsealed > _MOST_UNSEALED or news.skipped or news.missed
        if news.ended or (grown and time.monotonic() >= self._snapshot_due):
            await self._take_snapshot(model, ended=bool(news.ended))
        if model.following and (ops or news.ended):
            self.to_last_row()
        self.tell_news()

    def _take_finding(self, model: TraceModel, finding: dict[str, object]) -> None:
        known = [each.get("message") for each in model.story.findings]
        if finding.get("message") in known:
            return
        model.story.findings.append(finding)
        self.say(safe(finding.get("message", "a finding")), severity="error")

    async def look_again(self) -> None:
        """Take a new snapshot of a running trace now."""
        if self.model is not None and self.model.state == "live":
            await self._take_snapshot(self.model, ended=False)

    async def _take_snapshot(self, model: TraceModel, *, ended: bool) -> None:
        """Let the reader look again, so that every op has its place."""

        def look(reader: TraceReader) -> tuple[int, int, str, list[str], float]:
            started = time.monotonic()
            reader.refresh()
            total = reader.count_ops(model.rank)
            last = reader.ops_at(total - 1, total, rank=model.rank) if total else []
            spent_s = time.monotonic() - started
            problems = reader.health().lines()
            return total, last[0].op_id if last else -1, state_of(reader), problems, spent_s

        try:
            total, last_id, state, problems, spent_s = await model.pages.ask(look)
        except TraceLensError as error:
            self.say(str(error), severity="error")
            return
        self._snapshot_due = time.monotonic() + max(1.0, _SHARE * spent_s)
        model.generation += 1
        model.last_id, model.state, model.story.problems = last_id, state, problems
        self.rows.grow(total, last_id)
        model.total = self.rows.total
        if model.position >= model.total:
            self.to_last_row()
        if ended and state != "live":
            model.following = False
            self.say(f"the run has ended: {state}")
            self.run_worker(self.read_story(), group="story", exclusive=True)
            self.end_following()
