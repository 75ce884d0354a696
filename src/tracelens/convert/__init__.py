"""Exporters: a trace in another tool's format. Each module has one function, `export`."""
