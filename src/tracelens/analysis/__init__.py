"""Turn recorded ops into understanding: first causes, verdicts, reports.

Nothing here knows a framework, and nothing here reads a file: every function works on an
``OpSource`` (`source.py`), which the trace reader and the live ring both are.
"""
