"""The trace on disk: writing, sealing, recovering and reading it."""
