"""The C++ observer: compiled against the installed torch on first use, then cached."""
