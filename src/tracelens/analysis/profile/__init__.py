"""Where the time goes: analyses of kernels, ops, host spans, memory and steps of one trace.

``load_profile(reader)`` gives a ``ProfileData``; every analysis is a function of it that returns
frozen dataclasses with ``as_json()``. Times are whole nanoseconds since the trace's epoch.
"""

from tracelens.analysis.profile.data import ProfileData, load_profile

__all__ = ["ProfileData", "load_profile"]
