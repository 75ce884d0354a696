"""An independent judge of the nan zoo's labels: slow, exact, made of torch alone.

It watches a program through a dispatch mode that counts the non-finite elements of every input
before and of every output after each op, keeps which op last wrote each byte of each storage, and
walks back from the first sink (non-finite loss, gradient, parameter, or value read). It shares no
code with the product, so that a label both agree on was found twice.
"""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GARBAGE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
CONSTANT = {"full", "fill", "fill_", "masked_fill", "masked_fill_", "full_like", "new_full"}
CONSTANT |= {"scalar_tensor", "lift_fresh"}
ACCUMULATE = 2**64 - 1


@dataclass
class Counts:
    """Non-finite elements of one tensor."""

    nan: int
    inf: int

    @property
    def bad(self) -> bool:
        return bool(self.nan or self.inf)


def count(tensor: Any) -> Counts:
    """Count NaN and Inf of a tensor; zero for what holds no floating-point values."""
    if tensor.layout is not torch.strided:
        tensor = tensor._values()
    if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return Counts(0, 0)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return Counts(int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum()))


@dataclass
class Seen:
    """One op as executed."""

    index: int
    name: str
    line: str
    backward: bool
    inputs: list[tuple[Counts, int]] = field(default_factory=list)
    outputs: list[Counts] = field(default_factory=list)
    constant: bool = False
    optimizer: bool = False

    @property
    def bad(self) -> bool:
        return any(counts.bad for counts in self.outputs)


@dataclass
class Verdict:
    """What the walk found: ``line`` is ``file:number`` relative to the zoo."""

    sink: str
    op: str
    line: str
    kind: str
    phase: str
    step: int


class Oracle(TorchDispatchMode):
    """Records every op of a program and remembers the first sink."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = str(root)
        self.ops: list[Seen] = []
        self.writes: dict[int, list[tuple[int, int, int]]] = {}
        self.alive: list[Any] = []
        self.lines_by_sequence: dict[int, str] = {}
        self.last_sequence = -1
        self.sink: tuple[str, Seen | None, Counts, int] | None = None
        self.step = 0
        self.in_optimizer = False

    def user_line(self) -> tuple[str, bool]:
        """The innermost line of the program, and whether it lies outside the engine's call."""
        frame: Any = sys._getframe(2)
        inside = torch._C._current_autograd_node() is not None
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(self.root):
                return f"{Path(name).relative_to(self.root)}:{frame.f_lineno}", True
            if inside and frame.f_code.co_name == "_engine_run_backward":
                return "", False
            frame = frame.f_back
        return "", True

    def place(self) -> tuple[str, bool]:
        line, direct = self.user_line()
        node = torch._C._current_autograd_node()
        if node is not None and not direct:
            sequence = node._sequence_nr()
            return self.lines_by_sequence.get(sequence, f"node {node.name()}"), True
        now = torch._C._autograd._get_sequence_nr() - 1
        if now != self.last_sequence:
            self.last_sequence = now
            self.lines_by_sequence[now] = line
        return line, node is not None

    @staticmethod
    def extent(tensor: Any) -> tuple[int, int]:
        start = tensor.storage_offset() * tensor.element_size()
        reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        return start, start + (reach + 1) * tensor.element_size()

    def producer(self, tensor: Any) -> int:
        """Index of the last op that wrote a bad value into the tensor's bytes, or -1."""
        if tensor.layout is not torch.strided or tensor.numel() == 0:
            return self.writes.get(id(tensor), [(0, 0, -1)])[-1][2]
        start, end = self.extent(tensor)
        for first, last, index in reversed(self.writes.get(tensor.untyped_storage()._cdata, [])):
            if first < end and start < last and self.ops[index].bad:
                return index
        return -1

    def wrote(self, tensor: Any, index: int) -> None:
        if tensor.layout is not torch.strided:
            self.alive.append(tensor)
            self.writes.setdefault(id(tensor), []).append((0, 0, index))
            return
        storage = tensor.untyped_storage()
        self.alive.append(storage)
        start, end = self.extent(tensor)
        self.writes.setdefault(storage._cdata, []).append((start, end, index))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        line, backward = self.place()
        seen = Seen(len(self.ops), name, line, backward, optimizer=self.in_optimizer)
        leaves = tree_leaves((args, kwargs))
        seen.constant = name in CONSTANT or any(
            isinstance(leaf, float) and not math.isfinite(leaf) for leaf in leaves
        )
        before = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        seen.inputs = [(count(leaf), self.producer(leaf)) for leaf in before]
        result = func(*args, **kwargs)
        if name == "_local_scalar_dense":
            self.reached("read", before[0])
        written = {
            id(leaf)
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for leaf in tree_leaves(value)
        }
        written |= {
            id(kwargs[argument.name])
            for argument in func._schema.arguments
            if argument.name in kwargs
            and argument.alias_info is not None
            and argument.alias_info.is_write
        }
        storages = {
            leaf.untyped_storage()._cdata for leaf in before if leaf.layout is torch.strided
        }
        outputs = [leaf for leaf in before if id(leaf) in written]
        for leaf in tree_leaves(result):
            if not isinstance(leaf, torch.Tensor) or any(leaf is known for known in outputs):
                continue
            if leaf.layout is torch.strided and leaf.untyped_storage()._cdata in storages:
                continue
            outputs.append(leaf)
        if outputs and name not in GARBAGE:
            seen.outputs = [count(leaf) for leaf in outputs]
        self.ops.append(seen)
        for leaf in outputs:
            self.wrote(leaf, seen.index)
        return result

    def reached(self, sink: str, tensor: Any) -> None:
        if self.sink is not None:
            return
        with torch._C._DisableTorchDispatch():
            counts = count(tensor.detach())
        if counts.bad:
            index = self.producer(tensor.detach() if tensor.layout is torch.strided else tensor)
            self.sink = (sink, self.ops[index] if index >= 0 else None, counts, self.step)

    def verdict(self) -> Verdict | None:
        """Walk back from the first sink; ``None`` if nothing non-finite reached one."""
        if self.sink is None:
            return None
        sink, op, counts, step = self.sink
        if op is None:
            return Verdict(sink, "outside", "", "nan" if counts.nan else "inf", "data", step)
        origin, outside = self.origin(op, want_nan=bool(counts.nan), seen=set())
        kind = "nan" if any(c.nan for c in origin.outputs) else "inf"
        if outside:
            kind = "nan" if any(c.nan for c, _ in origin.inputs) else "inf"
        phase = "data" if outside else "optimizer" if origin.optimizer else "forward"
        if origin.backward and not outside:
            phase = "backward"
        return Verdict(sink, origin.name, origin.line, kind, phase, step)

    def origin(self, op: Seen, *, want_nan: bool, seen: set[int]) -> tuple[Seen, bool]:
        """The op to blame, and whether its bad input came from outside the program's ops."""
        while True:
            seen.add(op.index)
            nans = [p for c, p in op.inputs if c.nan]
            infs = [p for c, p in op.inputs if c.inf]
            follow = nans if want_nan and nans else infs
            if not follow:
                return op, False
            known = [p for p in follow if p >= 0 and p not in seen]
            if not known:
                return op, any(p < 0 for p in follow)
            before = self.ops[min(known)]
            if want_nan and not nans:
                made, outside = self.origin(before, want_nan=False, seen=set(seen))
                return (op, False) if made.constant and not outside else (made, outside)
            op = before


@contextmanager
def watched(root: Path) -> Iterator[Oracle]:
    """Run what is inside under an oracle whose sinks are hooked in."""
    oracle = Oracle(root)

    def before(optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    oracle.reached("gradient", parameter.grad)
        oracle.in_optimizer = True

    def after(optimizer: Any, *_: Any) -> None:
        oracle.in_optimizer = False
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                oracle.reached("parameter", parameter)
        oracle.step += 1

    engine = torch.autograd.backward

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        for tensor in tree_leaves(tensors):
            oracle.reached("loss", tensor)
        return engine(tensors, *args, **kwargs)

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    torch.autograd.backward = backward
    try:
        with oracle:
            yield oracle
    finally:
        torch.autograd.backward = engine
        for handle in handles:
            handle.remove()


def judge(program: Path, root: Path) -> tuple[Verdict | None, BaseException | None, int]:
    """Run a program; return the verdict, its exception and how many ops made a non-finite."""
    failure: BaseException | None = None
    here = sys.path[:]
    sys.path.insert(0, str(program.parent))
    with watched(root) as oracle:
        try:
            runpy.run_path(str(program), run_name="__main__")
        except (Exception, SystemExit) as error:
            failure = error
    sys.path[:] = here
    if failure is not None and oracle.sink is None:
        bad = [op for op in oracle.ops if op.bad]
        if bad:  # what the program tested before it gave up
            oracle.sink = ("exception", bad[-1], bad[-1].outputs[0], oracle.step)
    births = sum(
        op.bad and not any(c.bad for c, _ in op.inputs) and op.name not in GARBAGE
        for op in oracle.ops
    )
    return oracle.verdict(), failure, births
