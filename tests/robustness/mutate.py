"""``python mutate.py TRACE SEED`` damages each file of a trace in turn and reads the trace.

Prints how many mutations were made and by how many MiB the process grew.
"""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from use_trace import growth_mb, use

KINDS = ("flip", "truncate", "zero", "ones", "noise")


def damage(data: bytes, kind: str, dice: random.Random) -> bytes:
    """Return damaged bytes."""
    if not data:
        return b"\0"
    at = dice.randrange(len(data))
    end = min(len(data), at + dice.randrange(1, 200))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]
    if kind == "truncate":
        return data[:at]
    if kind == "zero":
        return data[:at] + bytes(len(data) - at)
    if kind == "ones":
        return data[:at] + b"\xff" * (end - at) + data[end:]
    return data[:at] + dice.randbytes(end - at) + data[end:]


def main(trace: Path, seed: int) -> None:
    """Damage, read, restore."""
    dice = random.Random(seed)
    use(trace)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0
    for file in sorted(path for path in trace.rglob("*") if path.is_file()):
        sound = file.read_bytes()
        for kind in KINDS:
            file.write_bytes(damage(sound, kind, dice))
            use(trace)
            count += 1
        file.write_bytes(sound)
    print(count, growth_mb(before_kb))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
