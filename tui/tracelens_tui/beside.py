"""The application beside a running program (``tracelens run --live``)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from tracelens.storage.manifest import SHARDS_DIR
from tracelens_tui.live import Live
from tracelens_tui.texts import safe

_INTERVAL_S = 0.05

if TYPE_CHECKING:
    from tracelens.control import Stopped
    from tracelens_tui.program import Program


def _has_begun(path: Path) -> bool:
    """Whether a trace has its first shard: before that there is nothing to follow."""
    return any((path / SHARDS_DIR).glob("*.json"))


class Beside(Live):
    """Waits for the program's trace, tells its stops and its end."""

    async def open(self, path: Path) -> None:
        """Open a trace; the application says how."""
        raise NotImplementedError

    async def watch_program(self, path: Path, program: Program) -> None:
        """Open the trace once it is there, then wait for the end of the program."""
        while not _has_begun(path) and program.exit_code is None:
            await asyncio.sleep(_INTERVAL_S)
        if not _has_begun(path):
            self.say(f"the program ended ({program.exit_code}) before it recorded anything")
            self._show_output(program)
            return
        await self.open(path)
        while program.exit_code is None:
            await asyncio.sleep(5 * _INTERVAL_S)
        self.paused = False
        code = program.exit_code
        self.say(
            f"the program has ended: exit code {code}" + ("" if code == 0 else "  (O: output)")
        )
        self.tell_news()

    async def program_stopped(self, stopped: Stopped) -> None:
        """The program stands still at a finding: go there."""
        self.paused = True
        first = next((line for line in stopped.report.splitlines() if line.strip()), "")
        self.say(f"the program stands still: {safe(first)}", severity="warning")
        while self.model is None:
            await asyncio.sleep(_INTERVAL_S)
        await self.look_again()
        if stopped.op_id >= 0:
            await self.go_to_op(stopped.op_id)
        self.tell_news()

    def action_output(self) -> None:
        """Show what the program prints."""
        if self.program is None:
            self.say("no program runs beside this trace: tracelens run --live")
        else:
            self._show_output(self.program)

    def _show_output(self, program: Program) -> None:
        from tracelens_tui.screens.output import OutputScreen

        self.push_screen(OutputScreen(program))

    def action_program(self, code: int) -> None:
        """Let the program that stands still go on, or end it."""
        from tracelens.faces import GO_ON

        if not self.paused:
            self.say("no program is paused here")
        elif self.program is None:
            self.exit(code)
        else:
            self.program.answer(go_on=code == GO_ON)
            self.paused = False
            self.tell_news()
