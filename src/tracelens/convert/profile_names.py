"""What the names of a profile's events say: steps, loaders, optimizers, Python frames, modules."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEP = re.compile(r"ProfilerStep\s*#\s*(\d{1,18})$")
_LOADER = re.compile(r"enumerate\(DataLoader\)|DataLoader\b|\[DataLoader\]")
_OPTIMIZER = re.compile(r"Optimizer\.(step|zero_grad)#")
# Since 2022 the engine's own range; before, the function it ran: "MulBackward0", "ViewBackward".
_BACKWARD = re.compile(
    r"autograd::engine::evaluate_function|torch::autograd::|[A-Z]\w*Backward\d*$"
)
_MODULE = "nn.Module: "
_FRAME = re.compile(r"(.+)\((\d{1,9})\): (.*)$", re.DOTALL)
_COMM = re.compile(r"nccl|rccl", re.IGNORECASE)
_LIBRARIES = frozenset(
    """torch torchvision torchaudio torchgen functorch triton numpy scipy pandas tracelens
    tracelens_torch pytest _pytest pluggy tqdm tensorboard torch_tb_profiler debugpy ipykernel
    IPython""".split()
)
_PACKAGES = re.compile(r"(?:^|[/\\])(?:site-packages|dist-packages)[/\\]")
_STDLIB = re.compile(r"(?:^|[/\\])lib(?:64)?[/\\]python\d[\d.]*[/\\]")


@dataclass(frozen=True, slots=True)
class Frame:
    """A Python frame.

    Attributes:
        file: its file as the profiler told.
        line: 1-based.
        function: its name.
    """

    file: str
    line: int
    function: str


@dataclass(slots=True)
class Names:
    """Facts about the distinct names of a profile; arrays of shape (names,).

    Attributes:
        texts: the names.
        step: number of the step that it marks, -1 for none.
        loader: marks the loading of a batch.
        optimizer: marks a step of an optimizer.
        backward: marks that the autograd engine runs a function.
        module: marks the call of a module.
        comm: names a kernel of a collective.
    """

    texts: Sequence[str]
    step: NDArray[np.int64]
    loader: NDArray[np.bool_]
    optimizer: NDArray[np.bool_]
    backward: NDArray[np.bool_]
    module: NDArray[np.bool_]
    comm: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Names:
        """Look at the distinct names of a profile."""
        steps = (_STEP.match(text) if text[:1] == "P" else None for text in texts)
        return cls(
            texts,
            np.array([int(found[1]) if found else -1 for found in steps], dtype=np.int64),
            _marks(bool(_LOADER.match(text)) for text in texts),
            _marks(bool(_OPTIMIZER.match(text)) for text in texts),
            _marks(bool(_BACKWARD.match(text)) for text in texts),
            _marks(text.startswith(_MODULE) for text in texts),
            _marks(bool(_COMM.search(text)) for text in texts),
        )


def frame_of(name: str) -> Frame | None:
    """Return the frame that a name tells, ``None`` if it tells none.

    Examples:
        >>> frame_of("train.py(12): step")
        Frame(file='train.py', line=12, function='step')
        >>> frame_of("<built-in method mm>")
    """
    found = _FRAME.match(name)
    return Frame(found[1], int(found[2]), found[3]) if found else None


def is_users(file: str) -> bool:
    """Tell whether a file is the user's: neither Python's, nor PyTorch's, nor a tool's.

    Profilers cut off the directory of a package, so ``torch/nn/modules/module.py`` is PyTorch's.
    A package that is installed and not known counts as the user's, as in recordings.

    Examples:
        >>> is_users("train.py"), is_users("torch/nn/modules/linear.py"), is_users("threading.py")
        (True, False, False)
    """
    if file.startswith("<"):
        return False
    packaged = _PACKAGES.split(file)
    inner = packaged[-1] if len(packaged) > 1 else file
    if len(packaged) == 1 and _STDLIB.search(file):
        return False
    top = re.split(r"[/\\]", inner, maxsplit=1)[0].removesuffix(".py")
    return top not in _LIBRARIES and not (
        top in sys.stdlib_module_names and (len(packaged) > 1 or not file.startswith(("/", ".")))
    )


def stack_frame(stack: str) -> Frame | None:
    """Return the innermost user's frame of a call stack, ``"a.py(3): f;b.py(9): main"``."""
    for text in stack.split(";"):
        frame = frame_of(text.strip())
        if frame is not None and is_users(frame.file):
            return frame
    return None


def module_name(name: str) -> str:
    """Return a module's name in a path: of ``"nn.Module: Linear_0"`` it is ``"Linear_0"``."""
    return name.removeprefix(_MODULE).replace(".", "_")


def module_path(hierarchy: str) -> str:
    """Return the path of a module hierarchy, ``"TOP(Net)::forward.conv1(Conv2d)::forward"``.

    Examples:
        >>> module_path("TOP(Net)::forward.layer1(Sequential)::forward.0(Block)::forward")
        'layer1.0'
    """
    parts = [part.split("(")[0] for part in hierarchy.split(".")]
    return ".".join(part for part in parts if part and part not in ("TOP", "SELF"))


def _marks(flags: object) -> NDArray[np.bool_]:
    return np.fromiter(flags, dtype=np.bool_)  # type: ignore[call-overload, no-any-return]
