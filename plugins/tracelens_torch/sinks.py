"""Reports a step's bad values, parameters under the names that the modules give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracelens import sinks

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_torch.modules import ModuleNames


class SinkFilter(sinks.SinkFilter):
    """The core's filter of sinks, which asks the modules for a parameter's name.

    Args:
        session: the recording.
        modules: names of parameters.
    """

    def __init__(self, session: Session, modules: ModuleNames) -> None:
        super().__init__(session, lambda tensor: modules.parameter(tensor, "a parameter"))
