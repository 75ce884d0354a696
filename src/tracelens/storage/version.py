"""The version of the format: apart from ``format``, so that reading a manifest needs no numpy."""

from __future__ import annotations

FORMAT_VERSION = "1.0"
MIN_READER = "1.0"
