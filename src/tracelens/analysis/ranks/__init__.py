"""What only many ranks together tell: who is late, whose clock is off, who went wrong first."""

from __future__ import annotations

from tracelens.analysis.ranks.report import RankReport, analyse

__all__ = ["RankReport", "analyse"]
