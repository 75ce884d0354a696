"""Run kept calls again under a capture engine, and compare what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tracelens_torch import guards
from tracelens_torch.batches import tensors_in
from tracelens_torch.guards import ReplayStopped, StepUnwound
from tracelens_torch.nonfinite import has_finite, same_bits
from tracelens_torch.snapshots import BufferCopies, RngState

if TYPE_CHECKING:
    from tracelens.session import Session
    from tracelens_torch.data import DataWatch
    from tracelens_torch.replay import StepCall
    from tracelens_torch.roots import RootCall


class Capture(Protocol):
    """What a replay needs of the engine that records it."""

    def start(self) -> None:
        """Begin to record the calling thread's ops."""

    def stop(self) -> None:
        """Stop recording."""

    def begin_step(self, step: int, active: bool) -> None:
        """A step begins."""

    def end_step(self, step: int) -> Any:
        """The step ended."""

    def register_data(self, tensors: list[torch.Tensor], name: str) -> int:
        """Write an op of phase ``data`` whose outputs are the tensors; return its id."""

    def value_id(self, tensor: torch.Tensor) -> int:
        """Return the id of the value that a tensor holds, -1 if no recorded op wrote it."""


@dataclass
class Outcome:
    """What came of a replay.

    Attributes:
        ran: it reached the update (or the end of backward).
        how: ``"step"`` (the function) or ``"model"`` (root modules and kept gradients).
        reason: why it did not run, or not to the end; empty if it did.
        remarks: what a reader must know to trust it, one clause each.
        compared: gradients compared with those of the first run.
        equal: those that were equal bit for bit.
        blank: those of the equal ones without a finite element, which prove little.
        values: value id of each gradient by parameter name, -1 unknown to the capture.
        losses: value id of each tensor that backward was called on.
        gradients: the second run's gradients by parameter name.
        outputs: what the models returned in the second run.
        outside: the models were given bad gradients for good outputs: what went wrong is in the
            code between and after them, which was not run again.
        duration_ns: how long it took.
    """

    ran: bool = False
    how: str = "step"
    reason: str = ""
    remarks: list[str] = field(default_factory=list)
    compared: int = 0
    equal: int = 0
    blank: int = 0
    values: dict[str, int] = field(default_factory=dict)
    losses: list[int] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: list[torch.Tensor] = field(default_factory=list)
    outside: bool = False
    duration_ns: int = 0

    @property
    def exact(self) -> bool:
        """Whether every gradient came out as in the first run.

        Gradients that are NaN throughout are equal whatever made them so: with nothing else to
        go by, a remark is reason enough to doubt.
        """
        if not self.ran or not self.compared or self.equal < self.compared:
            return False
        return self.blank < self.compared or not self.remarks


class Replay:
    """A replay while it runs.

    Attributes:
        losses: what backward was called on.
    """

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []

    def at_update(self) -> None:
        """An update is about to be made: the replay ends here.

        Raises:
            StepUnwound: always.
        """
        raise StepUnwound

    def at_fetch(self) -> None:
        """A batch is about to be fetched, which would be missing from the training.

        Raises:
            ReplayStopped: always.
        """
        raise ReplayStopped("the step fetches its data itself")


class _QuietSession:
    """The session as a replay's capture sees it: it records, and judges nothing.

    The sinks of a replay are those of the first run, which the sentinel tells.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def report_sink(self, **fields: Any) -> None:
        """Leave it to the sentinel."""

    def explain_pending(self, *, act: bool = True) -> list[dict[str, Any]]:
        """Leave it to the sentinel."""
        return []


def quiet(session: Session) -> Any:
    """Return the session for a replay's capture."""
    return _QuietSession(session)


_active: Replay | None = None


def active() -> Replay | None:
    """Return the replay that runs now, if one does: recorders and updates must keep out."""
    return _active


def inputs_of(calls: Iterable[StepCall | RootCall]) -> list[torch.Tensor]:
    """Return the tensors among the arguments of kept calls, parameters left out."""
    return [
        tensor
        for call in calls
        for tensor in tensors_in((call.args, call.kwargs))
        if not isinstance(tensor, torch.nn.Parameter)
    ]


def run_steps(calls: Sequence[StepCall], outcome: Outcome) -> None:
    """Call the kept functions again, in order, up to the update."""
    for call in calls:
        call.rng.restore()
        with guards.modes(call.grad_enabled, call.autocast):
            try:
                call.function(*call.args, **call.kwargs)
            except ReplayStopped as stopped:
                outcome.reason = str(stopped)
                return
            except StepUnwound:
                outcome.ran = True
                return
    outcome.ran = True


def run_roots(calls: Sequence[RootCall], outcome: Outcome) -> None:
    """Call the kept root modules again and hand their outputs the gradients they had got."""
    try:
        for call in calls:
            call.rng.restore()
            with guards.modes(True, call.autocast):
                outputs = tensors_in(call.module(*call.args, **call.kwargs))
            outcome.outputs.extend(outputs)
            for nth in range(max((len(g) for g in call.gradients.values()), default=0)):
                pairs = [
                    (outputs[place], gradients[nth])
                    for place, gradients in call.gradients.items()
                    if nth < len(gradients) and place < len(outputs)
                ]
                torch.autograd.backward(
                    [output for output, _ in pairs],
                    [gradient for _, gradient in pairs],
                    retain_graph=True,
                )
    except ReplayStopped as stopped:
        outcome.reason = str(stopped)
    else:
        outcome.ran = True


def rerun(
    run: Callable[[], None],
    step: int,
    parameters: Sequence[tuple[str, torch.Tensor]],
    outcome: Outcome,
    *,
    others: Sequence[torch.Tensor],
    capture: Capture,
    buffers: BufferCopies,
    inputs: Sequence[torch.Tensor],
    data: DataWatch | None,
    in_full: bool,
) -> None:
    """Run under capture with everything put back before and after; fill in the outcome.

    Args:
        run: runs the kept calls, fills in ``ran`` and ``reason``.
        step: the step's number.
        parameters: names and parameters whose gradients are compared.
        outcome: filled in.
        others: further leaves that must keep their gradients.
        capture: records the run; started and stopped here.
        buffers: buffers at the start of the first call.
        inputs: tensors that came from outside, to be given a producer.
        data: tells which batch an input came in.
        in_full: measure every output, not only the bad ones.
    """
    global _active
    leaves = {id(leaf): leaf for leaf in (*(parameter for _, parameter in parameters), *others)}
    leaves.update({id(leaf): leaf for leaf in inputs if leaf.requires_grad and leaf.is_leaf})
    now = RngState()
    replay = _active = Replay()
    try:
        with (
            guards.gradients_aside(list(leaves.values())) as first,
            buffers.rewound(),
            ExitStack() as stack,
        ):
            first_by_id = dict(zip(leaves, first, strict=True))
            capture.start()
            stack.callback(capture.stop)
            capture.begin_step(step, in_full)
            _register_inputs(capture, inputs, data, step)
            run()
            _compare(parameters, first_by_id, capture, outcome)
            outcome.losses = [capture.value_id(loss) for loss in replay.losses]
            capture.end_step(step)
    finally:
        _active = None
        now.restore()


def _compare(
    parameters: Sequence[tuple[str, torch.Tensor]],
    first: dict[int, torch.Tensor | None],
    capture: Capture,
    outcome: Outcome,
) -> None:
    for name, parameter in parameters:
        before, after = first[id(parameter)], parameter.grad
        if after is not None:
            outcome.values[name] = capture.value_id(after)
            outcome.gradients[name] = after
        if before is None and after is None:
            continue
        outcome.compared += 1
        if before is not None and after is not None and same_bits(before, after):
            outcome.equal += 1
            outcome.blank += not has_finite(after)


def _register_inputs(
    capture: Capture, inputs: Sequence[torch.Tensor], data: DataWatch | None, step: int
) -> None:
    """Give the inputs producers again: those of a known batch together, under its name."""
    rest: list[torch.Tensor] = []
    batches: dict[int, tuple[dict[str, Any], list[torch.Tensor]]] = {}
    for tensor in inputs:
        event = data.find(tensor) if data is not None else None
        if event is None:
            rest.append(tensor)
        else:
            batches.setdefault(id(event), (event, []))[1].append(tensor)
    for event, tensors in batches.values():
        op_id = capture.register_data(tensors, "DataLoader")
        if data is not None:
            data.tell_again(event, op_id, step)
    if rest:
        capture.register_data(rest, "step_input")
