"""``TraceCallback``: records the training that a library's trainer drives.

Lightning takes only children of its own ``Callback``, Hugging Face's ``Trainer`` calls every event
of its own. The class that both accept is made when the first callback is, of those libraries that
the program has imported by then: none of them is needed, none is imported.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from tracelens.errors import ConfigError
from tracelens.training import Training
from tracelens_torch import huggingface, lightning


class TraceCallback:
    """Records a training by Lightning or by Hugging Face's ``Trainer``, from its begin to its end.

    One step of the trace is one update of the parameters, numbered as the library's own
    ``global_step``; with accumulated gradients it holds several batches. What the library logs
    rides along as the step's scalars. Validation is told apart from the steps. In a session that
    is open already (``with tl.trace(...)``, ``tracelens run``) it opens none: that one records.

    Args:
        path: the trace directory, which must not exist yet; a second training with the same
            callback is recorded beside it.
        **settings: those of `tracelens.trace`: ``capture``, ``nonfinite``, ...

    Raises:
        ConfigError: a setting has a value that is not allowed, or neither library is imported.

    Examples:
        >>> import lightning.pytorch  # doctest: +SKIP
        >>> from tracelens_torch import TraceCallback
        >>> callback = TraceCallback("run.tltrace", nonfinite="raise")  # doctest: +SKIP
    """

    training: Training

    def __new__(cls, *args: Any, **settings: Any) -> TraceCallback:
        """Make an instance of the class that the imported libraries accept."""
        return object.__new__(_of_imported() if cls is TraceCallback else cls)

    def __init__(self, path: str | os.PathLike[str] | None = None, **settings: Any) -> None:
        super().__init__()
        self.training = Training(path, **settings)
        self._made_of = (path, settings)
        huggingface.tell_of_exceptions()

    def __reduce__(self) -> tuple[Any, ...]:
        # Launchers of several processes pickle callbacks; a recording stays where it is.
        path, settings = self._made_of
        return _make, (path, settings)


@functools.lru_cache
def accepted_by(bases: tuple[type, ...]) -> type[TraceCallback]:
    """Return the class of callbacks that is a child of the given libraries' own."""
    events = (TraceCallback, lightning.Events, huggingface.Events)
    return type("TraceCallback", (*events, *bases), {"__doc__": TraceCallback.__doc__})


def _of_imported() -> type[TraceCallback]:
    bases = (*lightning.bases(), *huggingface.bases())
    bases = bases or huggingface.bases(load=True)
    if not bases:
        raise ConfigError(
            "TraceCallback: import lightning, pytorch_lightning or transformers before you make "
            "one (plain loops need none; skorch and fastai have one in tracelens_torch.skorch "
            "and tracelens_torch.fastai)"
        )
    return accepted_by(bases)


def _make(path: Any, settings: dict[str, Any]) -> TraceCallback:
    return TraceCallback(path, **settings)
