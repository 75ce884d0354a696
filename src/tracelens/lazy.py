"""numpy, imported when it is first used.

Its import costs as much processor time as painting the first screen, and what only looks at a
page of ops needs none of it. Modules on that path say::

    if TYPE_CHECKING:
        import numpy as np
    else:
        from tracelens.lazy import np
"""

from __future__ import annotations


class _Numpy:
    """Stands for the module; each name of it is kept once it was asked for."""

    def __getattr__(self, name: str) -> object:
        import numpy

        value = getattr(numpy, name)
        setattr(self, name, value)
        return value


np = _Numpy()
