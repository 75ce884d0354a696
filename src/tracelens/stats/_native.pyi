"""Types of the compiled extension; see ``native/module.cpp``."""

from collections.abc import Callable
from typing import Any

def check(x: object, /) -> int: ...
def first_nonfinite(tensors: list[Any], /) -> int: ...
def stats(
    x: object, /
) -> tuple[int, int, int, int, int, int, float, float, float, float, float] | None: ...
def first_bad(x: object, wanted: int = 4, /) -> tuple[int, ...]: ...

class Emitter:
    def __init__(
        self,
        record_address: int,
        capacity: int,
        head_address: int,
        sealed_address: int,
        first_op_id: int = 0,
        epoch_monotonic_ns: int = 0,
        stream: bool = False,
        block: bool = False,
        op_id_address: int = 0,
    ) -> None: ...
    @property
    def dropped(self) -> int: ...
    def op(
        self,
        site_id: int,
        step: int,
        phase: int = 2,
        flags: int = 0,
        fwd_op_id: int = -1,
        duration_ns: int = -1,
        /,
        *input_ids: int,
    ) -> int: ...
    def measured(
        self,
        array: object,
        full: bool,
        input_ids: list[int],
        site_id: int,
        step: int,
        phase: int,
        flags: int,
        fwd_op_id: int,
        layout_id: int,
        start_ns: int,
        duration_ns: int,
        n_out: int,
        /,
    ) -> int: ...
    def reserve(self) -> int: ...
    def reserve_op_id(self) -> int: ...
    def close(self) -> None: ...

class Recorder:
    step: int
    phase: int
    muted: bool
    check: bool
    @property
    def ops(self) -> int: ...
    @property
    def hits(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    def open_ring(
        self,
        record_address: int,
        capacity: int,
        head_address: int,
        sealed_address: int,
        first_op_id: int = 0,
        epoch_monotonic_ns: int = 0,
        stream: bool = False,
        block: bool = False,
        op_id_address: int = 0,
    ) -> None: ...
    def connect(
        self,
        describe: Callable[..., Any],
        classify_code: Callable[..., Any],
        make_site: Callable[..., Any],
        on_hit: Callable[..., Any],
        on_sink: Callable[..., Any],
        on_failure: Callable[..., Any],
        tensor_kind: Callable[..., Any],
        sequence_nr: Callable[..., Any],
        current_node: Callable[..., Any],
        tensor_type: type,
        parameter_type: type,
    ) -> bool: ...
    def value_id(self, tensor: object, /) -> int: ...
    def wrote(self, tensors: list[Any], op_id: int, only_unknown: bool = False, /) -> int: ...
    def record_update(
        self, parameters: list[Any], gradients: list[Any], site_id: int, /
    ) -> int: ...
    def adopt(self, tensor: object, value_id: int, /) -> None: ...
    def reserve(self) -> int: ...
    def reserve_op_id(self) -> int: ...
    def resume(self) -> None: ...
    def forget_sites(self) -> None: ...
    def close(self) -> None: ...
