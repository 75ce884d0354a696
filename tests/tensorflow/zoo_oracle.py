"""An independent judge of the TensorFlow zoo's labels: slow, exact, made of TensorFlow alone.

``python zoo_oracle.py PROGRAM...`` prints one JSON object a program: ``{"program", "verdict"}``.

Two ways, and none of them shares code with the product. A program of TensorFlow 2 is run with
every ``tf.function``, loop, branch and data pipeline executed eagerly (TensorFlow's own switches),
and an op callback counts the non-finite elements of each op's inputs and outputs. A Session has
everything its fetches depend on fetched as well. Then the walk goes back from the first sink
(non-finite loss, gradient, variable, or value read) to the op whose inputs were finite.
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from keras.src import backend as keras_backend
from tensorflow.python.autograph.impl import api as autograph
from tensorflow.python.client.session import BaseSession
from tensorflow.python.framework import op_callbacks, ops
from tensorflow.python.ops import resource_variable_ops
from zoo_graphs import Graphs
from zoo_walk import FILLS, Counts, Seen, Verdict, count, judged, origin, zoo_line

SELECTS = {"SelectV2", "Select"}
WRITES = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"}


class Eager:
    """Records every eager op of a program and remembers the first sink."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.writer: dict[int, int] = {}
        self.forward: dict[tuple[str, tuple[int, ...]], int] = {}
        self.alive: list[Any] = []
        self.sink: tuple[str, int, Counts, int] | None = None
        self.step = 0
        self.scaled = False
        self.busy = False

    def place(self) -> tuple[str, str]:
        """Line and phase: a backward op has its forward op's line, unless the program's own."""
        frame: Any = sys._getframe(2)
        line, phase, forward = "", "forward", None
        while frame is not None:
            code, name = frame.f_code, Path(frame.f_code.co_filename).name
            if not line:
                line = zoo_line(code.co_filename, frame.f_lineno)
            if name == "backprop.py" and code.co_name == "_gradient_function" and not line:
                told = frame.f_locals
                known = [self.writer.get(id(t), -1) for t in told["outputs"] or () if t is not None]
                key = (
                    tf.compat.as_str(told["op_name"]),
                    tuple(id(t) for t in told["inputs"] or ()),
                )
                at = max([*known, self.forward.get(key, -1)])
                forward = self.seen[at] if at >= 0 else None
            if name == "imperative_grad.py" and phase == "forward":
                phase = "backward"
                line = line or (forward.line if forward else "unknown forward op")
            if name == "base_optimizer.py" and code.co_name in ("apply", "apply_gradients"):
                phase = "optimizer"
            frame = frame.f_back
        return line, phase

    def observe(
        self,
        name: Any,
        inputs: Any,
        attrs: Any,
        outputs: Any,
        op_name: Any = None,
        graph: Any = None,
    ) -> None:
        if graph is not None or self.busy:
            return
        self.busy = True
        try:
            self.record(tf.compat.as_str(name), inputs, outputs)
        finally:
            self.busy = False

    def record(self, name: str, inputs: Any, outputs: Any) -> None:
        line, phase = self.place()
        phase = "data" if name == "IteratorGetNext" else phase
        op = Seen(len(self.seen), name, line, phase, constant=name in FILLS)
        for position, tensor in enumerate(inputs):
            if not (name in SELECTS and position == 0):
                writer = self.writer.get(id(tensor), -1)
                if tensor.dtype == tf.resource:
                    held = self.seen[writer].outputs[:1] if writer >= 0 else []
                    op.inputs += [(counts, writer) for counts in held]
                elif tensor.dtype == tf.variant:  # an optional: what was put into it comes out
                    op.inputs += self.seen[writer].inputs if writer >= 0 else []
                else:
                    op.inputs.append((measure(tensor), writer))
        op.outputs = [measure(tensor) for tensor in outputs or ()]
        written = [t for t in inputs if t.dtype == tf.resource]
        updates = name in WRITES or name.startswith("ResourceApply")
        if updates:
            value = read(written[0], inputs)
            op.outputs = [] if value is None else [count(value)]
        self.seen.append(op)
        self.alive += [*inputs, *(outputs or ())]
        for tensor in (written[:1] if updates else outputs) or ():
            self.writer[id(tensor)] = op.index
        self.forward[name, tuple(id(t) for t in inputs)] = op.index
        if updates and op.bad and (phase == "optimizer" or name != "AssignVariableOp"):
            self.reached("parameter", op.index, op.outputs[0])

    def reached(self, sink: str, index: int, counts: Counts) -> None:
        if self.sink is None and counts.bad:
            self.sink = (sink, index, counts, self.step)

    def looked_at(self, sink: str, tensor: Any) -> None:
        """A loss, a gradient, or a value that the program reads."""
        if isinstance(tensor, tf.IndexedSlices):
            tensor = tensor.values
        if self.busy or not tf.is_tensor(tensor) or not hasattr(tensor, "_numpy"):
            return
        self.busy = True
        try:
            counts, writer = measure(tensor), self.writer.get(id(tensor), -1)
            if not (writer < 0 and counts.mask) and not (writer >= 0 and self.harmless(writer)):
                self.reached(sink, writer, counts)
        finally:
            self.busy = False

    def harmless(self, index: int) -> bool:
        """A constant infinity that is only looked at was put there on purpose."""
        made, outside = origin(self.seen, self.seen[index], want_nan=False, known=set())
        return made.constant and not outside and not any(c.nan for c in self.seen[index].outputs)


def measure(tensor: Any) -> Counts:
    if not (tensor.dtype.is_floating or tensor.dtype.is_complex):
        return Counts()
    return count(tensor.numpy())


def read(handle: Any, inputs: Any) -> Any:
    """The value of a variable just written, ``None`` if it holds no floating-point values."""
    types = [t.dtype for t in inputs if t.dtype.is_floating]
    if not types:
        return None
    return resource_variable_ops.gen_resource_variable_ops.read_variable_op(
        handle, types[0]
    ).numpy()


@contextmanager
def patched(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    plain = getattr(owner, name)
    setattr(owner, name, wrap(plain))
    try:
        yield
    finally:
        setattr(owner, name, plain)


@contextmanager
def watched() -> Iterator[Eager]:
    """Run what is inside eagerly under a judge whose sinks are hooked in."""
    judge = Eager()

    def gradient(plain: Any) -> Any:
        def wrapped(tape: Any, target: Any, *args: Any, **options: Any) -> Any:
            for tensor in tf.nest.flatten(target):
                judge.looked_at("loss", tensor)
            gradients = plain(tape, target, *args, **options)
            if not judge.scaled:
                for tensor in tf.nest.flatten(gradients):
                    judge.looked_at("gradient", tensor)
            return gradients

        return wrapped

    def to_numpy(plain: Any) -> Any:
        def wrapped(tensor: Any) -> Any:
            judge.looked_at("read", tensor)
            return plain(tensor)

        return wrapped

    def apply(plain: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            told = plain(*args, **options)
            judge.step += 1
            return told

        return wrapped

    def scaler(plain: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            judge.scaled = True
            return plain(*args, **options)

        return wrapped

    with contextlib.ExitStack() as stack:
        for owner, name, wrap in (
            (tf.GradientTape, "gradient", gradient),
            (autograph, "tf_convert", lambda _: lambda function, *_, **__: function),
            (ops._EagerTensorBase, "_numpy", to_numpy),
            (keras_backend, "convert_to_numpy", to_numpy),  # reads without ``_numpy``
            (tf.keras.optimizers.Optimizer, "apply_gradients", apply),
            (tf.keras.optimizers.LossScaleOptimizer, "__init__", scaler),
        ):
            stack.enter_context(patched(owner, name, wrap))
        tf.config.run_functions_eagerly(True)
        stack.callback(tf.config.run_functions_eagerly, False)
        op_callbacks.add_op_callback(judge.observe)
        stack.callback(op_callbacks.remove_op_callback, judge.observe)
        yield judge


def judge(program: Path) -> Verdict | None:
    """Run a program both ways at once; the verdict of the one that saw something."""
    tf.keras.backend.clear_session()
    tf.keras.mixed_precision.set_global_policy("float32")
    graphs = Graphs()
    with patched(BaseSession, "run", graphs.run), watched() as eager:
        runpy.run_path(str(program), run_name="__main__")
    return graphs.verdict or judged(eager.seen, eager.sink)


def main(programs: list[str]) -> None:
    tf.data.experimental.enable_debug_mode()
    for program in programs:
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent):
            verdict = judge(Path(program))
        print(json.dumps({"program": program, "verdict": verdict and vars(verdict)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
