"""A finding where an op ran on another device than the program asked for.

TensorFlow places softly: an op whose device does not exist, or has no kernel for it, runs elsewhere
in silence. The runtime is asked where ops went only at the first call of a function that
holds an op for which that can happen; in eager code it is seen where ``tf.device`` is entered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels

from tracelens.userframes import source_keys
from tracelens_tensorflow import facts
from tracelens_tensorflow.calls import Call
from tracelens_tensorflow.plans import graphs_of
from tracelens_tensorflow.sources import calling_line, words

if TYPE_CHECKING:
    from tracelens.events import Source
    from tracelens.session import Session

_MAX_TOLD = 16
"""Findings of one function: one for each pair of devices."""


class Placement:
    """Looks at where the ops of each function went when it first ran.

    Args:
        session: the recording.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen: set[bytes] = set()
        self._collecting = False
        self._devices: set[str] = set()
        self._blocks: set[tuple[str, str, int]] = set()

    def install(self) -> Callable[[], None]:
        """Begin to look at eager ``tf.device`` blocks; the result, called, ends it."""
        original = context._EagerDeviceContext.__enter__

        @functools.wraps(original)
        def __enter__(block: Any) -> Any:
            entered = original(block)
            device = block._device_name
            if device is not None and device not in self._devices:
                self._entered(device)
            return entered

        context._EagerDeviceContext.__enter__ = __enter__

        def uninstall() -> None:
            self.stop()
            if context._EagerDeviceContext.__enter__ is __enter__:
                context._EagerDeviceContext.__enter__ = original

        return uninstall

    def before_call(self, call: Call) -> None:
        """A function is about to run. Never raises."""
        name = call.function.name
        if self._collecting:  # a call before this one failed
            self.stop()
        if name in self._seen:
            return
        self._seen.add(name)
        try:
            if any(_may_move(op) for op in requesting(call.graph)):
                context.context().enable_graph_collection()
                self._collecting = True
        except Exception as error:
            self._fail(error)

    def after_call(self, call: Call) -> None:
        """It ran. Never raises."""
        if not self._collecting:
            return
        try:
            metadata = context.context().export_run_metadata()
            self.stop()
            self.judge(call.graph, devices_in(metadata.partition_graphs))
        except Exception as error:
            self._fail(error)

    def stop(self) -> None:
        """Ask the runtime no more."""
        if self._collecting:
            self._collecting = False
            context.context().disable_graph_collection()

    def judge(self, graph: Any, actual: Mapping[str, str]) -> None:
        """Tell the ops of a graph that went elsewhere.

        Args:
            graph: a graph; the functions that it calls count too.
            actual: the device of each op, by its name.
        """
        moved: dict[tuple[str, str], list[Any]] = {}
        for op in requesting(graph):
            went = actual.get(op.name)
            if went is not None and differs(op.device, went):
                moved.setdefault((short(op.device), short(went)), []).append(op)
        for (asked, went), ops in list(moved.items())[:_MAX_TOLD]:
            self._tell(asked, went, ops)

    def _entered(self, device: str) -> None:
        """Tell a block whose device is not there."""
        try:
            spec = tf.DeviceSpec.from_string(device)
            if spec.device_type is None or spec.job not in (None, "localhost") or _exists(spec):
                self._devices.add(device)
                return
            source = calling_line()
            place = (device, source.file, source.line) if source is not None else (device, "", 0)
            if place in self._blocks or len(self._blocks) >= _MAX_TOLD:
                return
            self._blocks.add(place)
            if tf.config.get_soft_device_placement():
                self._tell_block(device, source)
        except Exception as error:
            self._devices.add(device)
            self._fail(error)

    def _tell_block(self, device: str, source: Source | None) -> None:
        asked, went = short(device), short(tf.config.list_logical_devices()[0].name)
        absent, advice = _absent()
        self._session.report_finding(
            "placement",
            f"a tf.device block{words(source)} asks for {asked}, its ops run on {went}: {absent}",
            severity="warning",
            advice=advice,
            requested=asked,
            device=went,
            **({} if source is None else {"source": source_keys(source)}),
        )

    def _fail(self, error: Exception) -> None:
        self.stop()
        self._session.note("hook_failed", f"devices were not looked up: {error!r}", "warning")

    def _tell(self, asked: str, went: str, ops: list[Any]) -> None:
        first = ops[0]
        more = "" if len(ops) == 1 else f" and {len(ops) - 1} more"
        reason, advice = _reason(first, went)
        known = facts.facts_of(first)
        self._session.report_finding(
            "placement",
            f"{first.type}{words(known.source)}{more} asked for {asked}, ran on {went}: {reason}",
            severity="warning",
            advice=advice,
            requested=asked,
            device=went,
            ops=[op.name for op in ops[:32]],
            n_ops=len(ops),
            **({} if known.source is None else {"source": source_keys(known.source)}),
        )


def requesting(graph: Any) -> Iterator[Any]:
    """Yield the ops of a graph, and of the functions it calls, that ask for a device."""
    for each in graphs_of(graph):
        yield from (op for op in each.get_operations() if op.device)


def devices_in(partition_graphs: Iterable[Any]) -> dict[str, str]:
    """Return the device of each op of placed graphs, by the name it had in the program's graph."""
    found: dict[str, str] = {}
    for partition in partition_graphs:
        for node in partition.node:
            names = list(node.experimental_debug_info.original_node_names) or [node.name]
            for name in names:
                found.setdefault(name, node.device)
    return found


def differs(asked: str, went: str) -> bool:
    """Tell whether a device is another than was asked for; what was left open does not count.

    Args:
        asked: ``"/device:GPU:0"``, perhaps without a number, perhaps with a job and task.
        went: where it ran, in full.
    """
    wanted, got = tf.DeviceSpec.from_string(asked), tf.DeviceSpec.from_string(went)
    parts = ("job", "replica", "task", "device_type", "device_index")
    return any(
        getattr(wanted, part) is not None and getattr(wanted, part) != getattr(got, part)
        for part in parts
    )


def short(device: str) -> str:
    """Return a device as the user writes it: ``"GPU:0"``, with the task if it is another's."""
    spec = tf.DeviceSpec.from_string(device)
    local = spec.job in (None, "localhost") and not spec.task
    place = "" if local else f"/job:{spec.job}/task:{spec.task}/"
    index = "" if spec.device_index is None else f":{spec.device_index}"
    return f"{place}{spec.device_type or 'any device'}{index}"


def _may_move(op: Any) -> bool:
    """Tell whether an op may run elsewhere than it asks to: for all others it is not looked up."""
    spec = tf.DeviceSpec.from_string(op.device)
    if spec.device_type is None:
        return False
    if not _exists(spec) or not _has_kernel(op.type, spec.device_type):
        return True
    # Ops of a variable go where the variable is.
    return any(tensor.dtype == tf.resource for tensor in op.inputs)


def _exists(spec: Any) -> bool:
    return any(
        device.device_type == spec.device_type
        and spec.device_index in (None, int(device.name.rpartition(":")[2]))
        for device in tf.config.list_logical_devices()
    )


@functools.lru_cache(maxsize=4096)
def _has_kernel(op_type: str, device_type: str) -> bool:
    known = kernels.get_registered_kernels_for_op(op_type).kernel
    return not known or any(kernel.device_type in (device_type, "DEFAULT") for kernel in known)


def _reason(op: Any, went: str) -> tuple[str, str]:
    spec = tf.DeviceSpec.from_string(op.device)
    if not _exists(spec):
        return _absent()
    if not _has_kernel(op.type, spec.device_type):
        return (
            f"{op.type} has no kernel for a {spec.device_type}",
            f"leave the op out of the tf.device block: each crossing copies its tensors to and "
            f"from {went}",
        )
    return (
        "TensorFlow keeps it with a variable or another op that is there",
        f"make the variable on the device that uses it, or leave the op on {went}",
    )


def _absent() -> tuple[str, str]:
    devices = ", ".join(short(device.name) for device in tf.config.list_logical_devices())
    return (
        f"there is no such device here (there are {devices})",
        "ask for a device that tf.config.list_logical_devices() lists, or switch off soft "
        "placement (tf.config.set_soft_device_placement(False)) to get an error instead",
    )
