"""The terminal interface of TraceLens: a trace, inspected step by step."""
