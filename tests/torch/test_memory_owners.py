"""Owners of memory where an allocator tells more than this machine's: a made-up CUDA device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tracelens.convert.profile_rows import Steps
from tracelens.storage.tables import MEMORY_OWNERS
from tracelens_torch.memory import memory_table
from tracelens_torch.memory_owners import (
    GRADIENT,
    INPUT,
    OPTIMIZER_STATE,
    PARAMETER,
    Held,
    Mark,
)
from tracelens_torch.profile_events import Allocations, Events, Kind
from tracelens_torch.profile_tables import Host

FORWARD, BACKWARD = 0, 1


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def two_ops() -> Events:
    """A forward op from 100 to 200 and a backward op from 300 to 400, on one thread."""
    nothing = ints(-1, -1)
    return Events(
        kind=np.array([Kind.OP, Kind.OP], dtype=np.uint8),
        name=ints(0, 1),
        start_ns=ints(100, 300),
        end_ns=ints(200, 400),
        tid=ints(7, 7),
        device=nothing,
        corr=ints(1, 2),
        linked=ints(0, 0),
        seq=ints(5, 5),
        scope=ints(0, 1),
        thread=ints(1, 1),
        fwd_thread=ints(0, 1),
        shapes=nothing,
        dtypes=nothing,
        values=nothing,
        meta=nothing,
        names=["aten::mm", "MmBackward0"],
        texts=[],
        allocations=Allocations(*[ints()] * 6, devices=[], event=ints()),
    )


def table(
    changes: list[tuple[int, int, int, int, int]],
    held: list[Held],
    marks: list[Mark],
    held_at_end: list[Held] | None = None,
    device: str = "cuda:0",
) -> list[tuple[int, int, str | None, int]]:
    """Return ``(t_ns, size_bytes, owner, allocated_bytes)`` of each row.

    Args:
        changes: ``(t_ns, address, size_bytes, total_bytes, event)`` of each.
        held: blocks that were there.
        marks: what was seen.
        held_at_end: blocks that are there at the end.
        device: of all.
    """
    events = two_ops()
    t_ns, address, size, total, event = (ints(*column) for column in zip(*changes, strict=True))
    zero = np.zeros(len(t_ns), dtype=np.int64)
    events.allocations = Allocations(t_ns, address, size, total, total, zero, [device], event)
    owners = SimpleNamespace(held=held, marks=marks, held_at_end=held_at_end or [])
    steps = Steps(ints(0), ints(0), ints(1000))
    none = np.full(2, -1, dtype=np.int64)
    made = memory_table(events, Host(events), ints(0, 1), steps, owners, [], none, 0)  # type: ignore[arg-type]
    assert made is not None
    texts = [*made["owner"].texts, None]
    owner = [texts[code] for code in made["owner"].codes.tolist()]
    return list(
        zip(
            made["t_ns"].tolist(),
            made["size_bytes"].tolist(),
            owner,
            made["allocated_bytes"].tolist(),
            strict=True,
        )
    )


def test_a_device_counts_what_was_there_before_and_tells_when_it_goes() -> None:
    found = table(
        [(150, 1000, 64, 1064, FORWARD), (500, 4000, -32, 1032, -1), (600, 1000, -64, 968, -1)],
        held=[Held(4000, 32, "cuda:0", OPTIMIZER_STATE), Held(5000, 8, "cuda:0", PARAMETER)],
        marks=[],
    )
    assert found == [
        (0, 32, "optimizer_state", 1000),
        (0, 8, "parameter", 1000),
        (150, 64, "activation", 1064),
        (500, -32, "optimizer_state", 1032),
        (600, -64, "activation", 968),
    ]


def test_what_a_forward_op_frees_before_the_backward_pass_is_temporary() -> None:
    found = table([(110, 1000, 64, 64, FORWARD), (120, 1000, -64, 0, FORWARD)], [], [])
    assert [row[2] for row in found] == ["temporary", "temporary"]


def test_marks_tell_gradients_inputs_and_what_was_made_meanwhile() -> None:
    found = table(
        [
            (50, 1000, 16, 16, -1),
            (350, 2000, 64, 80, BACKWARD),
            (360, 3000, 64, 144, BACKWARD),
            (370, 3000, -64, 80, BACKWARD),
            (450, 3000, 128, 208, -1),
        ],
        held=[],
        marks=[
            Mark(60, INPUT, [1000]),
            Mark(410, GRADIENT, [2000]),
            Mark(500, OPTIMIZER_STATE, [3000]),
        ],
    )
    assert [row[2] for row in found] == [
        "input", "gradient", "temporary", "temporary", "optimizer_state",
    ]  # fmt: skip


def test_gradients_gone_before_the_first_update_are_not_counted_twice() -> None:
    held = [Held(2000, 64, "cpu", GRADIENT), Held(5000, 64, "cpu", PARAMETER)]
    found = table(
        [(350, 2500, 64, 64, BACKWARD)], held, [Mark(410, GRADIENT, [2500])], device="cpu"
    )
    assert found == [(0, 64, "parameter", 64), (350, 64, "gradient", 128)]


def test_an_address_that_is_given_out_again_was_free() -> None:
    held = [Held(2000, 64, "cpu", GRADIENT)]
    found = table([(350, 2000, 32, 32, BACKWARD)], held, [], device="cpu")
    assert found == [(0, 64, "gradient", 64), (350, -64, "gradient", 0), (350, 32, None, 32)]


def test_what_is_there_at_the_end_and_was_never_allocated_was_there_before() -> None:
    found = table(
        [(350, 2000, 32, 32, BACKWARD)],
        held=[],
        marks=[Mark(900, PARAMETER, [7000])],
        held_at_end=[Held(7000, 256, "cpu", PARAMETER)],
        device="cpu",
    )
    assert found == [(0, 256, "parameter", 256), (350, 32, None, 288)]
    assert set(MEMORY_OWNERS) >= {"parameter", "gradient"}
