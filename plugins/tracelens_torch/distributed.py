"""What a rank shares with others: its collectives, and fingerprints of its parameters.

Collectives are seen where the process group runs them, DDP's gradient buckets included, and nothing
is added to what the program sends. Their process group, number and element type come from PyTorch's
own flight recorder, if it runs (it does by default).
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from tracelens_torch.native import build

if TYPE_CHECKING:
    from tracelens.session import Session

DRAIN_AT = 256
"""Calls that may wait to be written: few enough that the flight recorder still knows them all."""

_DTYPES = {"float": "float32", "double": "float64", "half": "float16", "char": "int8",
           "byte": "uint8", "short": "int16", "int": "int32", "long": "int64"}  # fmt: skip
_INT_OF = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Collectives:
    """Writes the collectives of one session; does nothing at guard level.

    Args:
        session: the recording.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._native: Any = None
        self._reason = ""
        self._held: dict[int, tuple[Any, ...]] = {}
        self._next = 0
        self._written = 0
        self._flights = _Flights()

    def start(self) -> None:
        """Begin to observe, where the session records more than findings."""
        config = self._session.config
        if config.capture == "guard" and not config.profile:
            return
        if not torch.distributed.is_available():
            return
        try:
            if not build.built() and config.capture == "tensors":
                raise build.BuildError("the native observer is not compiled")
            self._native = build.load()
        except build.BuildError as error:
            self._reason = str(error)
            return
        self._flights.start()
        self._native.start_collectives(self._session.writer.epoch_monotonic_ns)

    def begin_step(self, step: int) -> None:
        """A step begins: collectives that begin from now on are its."""
        if self._native is not None:
            self._native.set_collective_step(step)

    def end_step(self) -> None:
        """A step ended: write what was seen, if it has become much."""
        if self._native is None:
            return
        self._flights.learn_groups()
        if self._native.collectives_done() >= DRAIN_AT:
            self._write(last=False)

    def stop(self) -> None:
        """Stop observing and write what was seen."""
        native = self._native
        if native is None:
            if self._reason and torch.distributed.is_available() and _initialised():
                self._session.note("collectives", f"not recorded: {self._reason}", "info")
            return
        native.stop_collectives()
        self._write(last=True)
        dropped = native.collectives_dropped()
        if dropped:
            told = f"{dropped} collectives were dropped: too many in one step"
            self._session.note("drop", told, "warning")
        self._native = None

    def abandon(self) -> None:
        """In a forked child: observe nothing and write nothing."""
        native, self._native = self._native, None
        if native is not None:
            native.stop_collectives()

    def _write(self, *, last: bool) -> None:
        """Write the calls in the order they began; one that still runs holds back those after."""
        for call in self._native.take_collectives():
            self._held[call[0]] = call
        self._flights.refresh()
        for index in sorted(self._held):
            if index != self._next and not last:
                break
            self._next = index + 1
            self._event(*self._held.pop(index)[1:])

    def _event(
        self, title: str, dtype: str, step: int, start: int, end: int, size: int, tid: int
    ) -> None:
        backend, _, name = title.partition(":")
        flight = self._flights.take(title)
        # NCCL's work is done for the host once it is launched: how long it took is not known.
        known = backend in ("gloo", "mpi")
        self._session.writer.event(
            "collective",
            coll_id=self._written,
            step=step,
            name=name.replace("_", "").lower(),
            backend=backend,
            dtype=_DTYPES.get(dtype.lower(), dtype.lower()) or None,
            size_bytes=size,
            tid=tid,
            start_ns=start,
            duration_ns=end - start if known else None,
            **flight,
        )
        self._written += 1


class _Flights:
    """The flight recorder's entries, taken in the order in which collectives were called."""

    def __init__(self) -> None:
        self._dump: Callable[..., Any] | None = None
        self._seen = -1
        self._waiting: dict[str, deque[dict[str, Any]]] = {}
        self._sizes: dict[str, int] = {}

    def start(self) -> None:
        """Skip what was called before."""
        module = sys.modules.get("torch._C._distributed_c10d")
        self._dump = getattr(module or torch._C, "_dump_fr_trace_json", None)
        for entry in self._entries():
            self._seen = max(self._seen, entry.get("record_id", -1))

    def refresh(self) -> None:
        """Take note of what was called since."""
        self.learn_groups()
        for entry in self._entries():
            number = entry.get("record_id", -1)
            if number > self._seen:
                self._seen = number
                title = str(entry.get("profiling_name"))
                self._waiting.setdefault(title, deque()).append(entry)

    def learn_groups(self) -> None:
        """Take note of how many ranks each process group has; a program may end them early."""
        with contextlib.suppress(Exception):  # private, and may be another in another version
            groups = torch.distributed.distributed_c10d._world.pg_names
            if len(groups) > len(self._sizes):
                self._sizes = {name: int(group.size()) for group, name in groups.items()}

    def take(self, title: str) -> dict[str, Any]:
        """Return group, number and size of group of the next call of a kind; empty if not known."""
        waiting = self._waiting.get(title)
        if not waiting:
            return {}
        entry = waiting.popleft()
        group = entry.get("process_group") or [None]
        peer = bool(entry.get("is_p2p"))
        return {
            "comm_group": str(group[0]) if group[0] is not None else None,
            "seq": None if peer else entry.get("collective_seq_id"),
            "comm_ranks": self._sizes.get(str(group[0])),
        }

    def _entries(self) -> Iterable[dict[str, Any]]:
        if self._dump is None:
            return []
        try:
            entries = json.loads(self._dump(True, False)).get("entries", [])
        except (RuntimeError, TypeError, ValueError):
            return []
        return sorted(entries, key=lambda entry: int(entry.get("record_id", -1)))


def _initialised() -> bool:
    return bool(torch.distributed.is_initialized())


class Fingerprints:
    """Takes fingerprints of watched models (``tl.watch(model, fingerprint_every=N)``).

    A checksum is the wrapping sum of a parameter's bits read as integers: equal parameters have
    equal ones on every device and in every order of summation, other values very likely not.
    """

    def __init__(self, session: Session, muted: Callable[[], AbstractContextManager[None]]) -> None:
        self._session = session
        self._muted = muted
        self._models: list[tuple[torch.nn.Module, str, int]] = []
        self._told = False

    def add(self, model: torch.nn.Module, name: str, every: int) -> None:
        """Take a model's fingerprint at the end of every so many steps."""
        self._models = [known for known in self._models if known[0] is not model]
        self._models.append((model, name, every))

    def end_step(self, step: int) -> None:
        """Take the fingerprints that are due."""
        due = [(model, name) for model, name, every in self._models if step % every == 0]
        if not due:
            return
        with self._muted(), torch.no_grad():
            for model, name in due:
                self._take(model, name, step)

    def _take(self, model: torch.nn.Module, prefix: str, step: int) -> None:
        whole = list(_tensors(model, prefix, self._tell_sharded))
        for device in {tensor.device for _, _, tensor in whole}:
            mine = [entry for entry in whole if entry[2].device == device]
            # One read off the device for all of them.
            sums = torch.stack([_checksum(tensor) for _, _, tensor in mine]).tolist()
            norms = torch.stack([_norm(tensor) for _, _, tensor in mine]).tolist()
            for (kind, name, tensor), checksum, norm in zip(mine, sums, norms, strict=True):
                finite = norm == norm and abs(norm) != float("inf")
                self._session.writer.event(
                    "fingerprint",
                    step=step,
                    kind=kind,
                    name=name,
                    numel=tensor.numel(),
                    checksum=checksum,
                    l2=norm if finite else None,
                )

    def _tell_sharded(self, name: str) -> None:
        if not self._told:
            self._told = True
            told = f"{name} is sharded: its parts differ on purpose, no fingerprint is taken"
            self._session.note("fingerprint", told)


def _tensors(
    model: torch.nn.Module, prefix: str, tell: Callable[[str], None]
) -> Iterator[tuple[str, str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        name = f"{prefix}.{name}" if prefix else name
        if hasattr(parameter, "_local_tensor") or hasattr(parameter, "_local_shard"):
            tell(name)
        elif parameter.is_sparse or parameter.is_meta or not parameter.numel():
            continue
        else:
            yield "parameter", name, parameter.detach()
            gradient = parameter.grad
            if gradient is not None and not gradient.is_sparse:
                yield "gradient", name, gradient.detach()


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype is torch.bool:
        tensor = tensor.to(torch.int8)
    size = tensor.element_size()
    if size not in _INT_OF:  # complex128
        tensor, size = torch.view_as_real(tensor), 8
    return tensor.view(_INT_OF[size]).sum(dtype=torch.int64)


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean norm as float64; of no meaning for integers, where it is the zeroth."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    if tensor.element_size() < 4:
        tensor = tensor.to(torch.float32)
    return torch.linalg.vector_norm(tensor).to(torch.float64)
