from __future__ import annotations

import sys
from pathlib import Path

# The tests are imported one by one (importmode=importlib), so what they share needs a path.
sys.path.insert(0, str(Path(__file__).parent))

# Run by inner pytests; the outer one would import them to look for examples in docstrings.
collect_ignore = ["zoo_programs.py", "suite", "inner_server.py"]
