"""What TensorFlow's ops do to a NaN or an Inf: which cannot make one, which hand one on.

The tables decide where a graph has to be checked. They hold for finite inputs and for any values
of the other inputs; an op that is in no table is taken to make non-finite values and to swallow
those it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

_MOVERS = (
    "Identity IdentityN Snapshot StopGradient PreventGradient Reshape ExpandDims Squeeze Transpose "
    "ConjugateTranspose ConcatV2 Pack Unpack Split SplitV Slice StridedSlice StridedSliceGrad Tile "
    "Pad PadV2 MirrorPad Gather GatherV2 GatherNd ResourceGather ResourceGatherNd Reverse "
    "ReverseV2 ReverseSequence Roll BroadcastTo TensorScatterUpdate DynamicPartition "
    "DynamicStitch ParallelDynamicStitch Select SelectV2 Diag DiagPart MatrixDiag MatrixDiagV3 "
    "MatrixDiagPart MatrixDiagPartV3 MatrixSetDiagV3 MatrixBandPart SpaceToDepth DepthToSpace "
    "SpaceToBatchND BatchToSpaceND ZerosLike OnesLike Fill Real Imag Conj ReadVariableOp "
    "EnsureShape Placeholder PlaceholderWithDefault Const TensorListStack TensorListGetItem "
    "TensorListGather TensorListConcatV2 TensorListPopBack IteratorGetNext OptionalGetValue"
)
_BOUNDED = (
    "Relu Relu6 LeakyRelu Elu Selu Maximum Minimum ClipByValue Abs Neg Sign Floor Ceil Round Rint "
    "Tanh Sigmoid Softsign Softplus Softmax LogSoftmax Sin Cos Atan Atan2 Erf Erfc MaxPool "
    "MaxPoolV2 MaxPool3D MaxPoolGrad MaxPoolGradV2 TopKV2 ReluGrad Relu6Grad LeakyReluGrad"
)
_MAKERS = (
    "RandomUniform RandomStandardNormal TruncatedNormal StatelessRandomUniform "
    "StatelessRandomUniformV2 StatelessRandomNormal StatelessRandomNormalV2 "
    "StatelessTruncatedNormal StatelessTruncatedNormalV2 LinSpace Range OneHot"
)

CANNOT_CREATE = frozenset(f"{_MOVERS} {_BOUNDED} {_MAKERS}".split())
"""Finite inputs give finite outputs: they move values, bound them, or make numbers of their own.
A constant is as it was written, on purpose; what comes in from outside is seen where it is used."""

ALL_INPUTS = frozenset(
    "Add AddV2 Sub Mul AddN BiasAdd BiasAddV1 SquaredDifference MatMul BatchMatMul BatchMatMulV2 "
    "BatchMatMulV3 Einsum ConcatV2 Pack".split()
)
"""A non-finite element of any floating input makes one in the output: Inf * 0 and Inf - Inf are
NaN. Not for products and sums over nothing, which no program takes."""

FIRST_INPUT = frozenset(
    "Identity Snapshot StopGradient PreventGradient Reshape ExpandDims Squeeze Transpose "
    "ConjugateTranspose Tile Pad PadV2 MirrorPad Reverse ReverseV2 Roll BroadcastTo EnsureShape "
    "SpaceToDepth DepthToSpace SpaceToBatchND Neg Abs Square Sqrt Log Log1p L2Loss Sum Mean "
    "EuclideanNorm Cumsum BiasAddGrad RealDiv Div Diag MatrixDiag MatrixDiagV3 LogSoftmax".split()
)
"""The same, for the first input only. Left out are ops that can skip elements (pooling, gathers)
and those that map an Inf to a finite number (Exp, Rsqrt, Tanh, a divisor)."""

_AT = {
    "TanhGrad": (1,),
    "SigmoidGrad": (1,),
    "Conv2DBackpropInput": (2,),
    "Conv2DBackpropFilter": (2,),
    "DepthwiseConv2dNativeBackpropInput": (2,),
    "DepthwiseConv2dNativeBackpropFilter": (2,),
}

WRITES = frozenset(
    "AssignVariableOp AssignAddVariableOp AssignSubVariableOp ResourceScatterAdd "
    "ResourceScatterSub ResourceScatterUpdate ResourceScatterNdUpdate ResourceScatterNdAdd "
    "ResourceStridedSliceAssign".split()
)
"""They write a value into a variable: input 0 is the variable, the last one the value."""

APPLIES = ("ResourceApply", "ResourceSparseApply")
"""How the names of fused optimizer updates begin; their input ``grad`` is a gradient."""

CALLS = frozenset("PartitionedCall StatefulPartitionedCall".split())
BRANCHES = frozenset("If StatelessIf Case StatelessCase".split())
LOOPS = frozenset("While StatelessWhile".split())


def can_create(op: tf.Operation) -> bool:
    """Tell whether an op can make a non-finite value from finite ones."""
    if op.type == "Cast":
        source, target = op.inputs[0].dtype, op.outputs[0].dtype
        # 16 bits of float end at 65504; wider integers than that exist.
        return bool(target.size < 4 if not source.is_floating else target.size < source.size)
    return op.type not in CANNOT_CREATE


def propagates(op: tf.Operation, place: int) -> bool:
    """Tell whether a non-finite element of an input surely shows in the op's first output.

    Args:
        op: the op.
        place: which input.
    """
    kind = op.type
    if kind in _AT:
        return place in _AT[kind]
    if kind in ALL_INPUTS:
        return True
    if kind == "Cast":
        return bool(op.outputs[0].dtype.is_floating)
    if kind == "Conv2D":
        return place == 0 and _uses_all(op)
    return place == 0 and (
        kind in FIRST_INPUT or kind in ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
    )


def _uses_all(op: tf.Operation) -> bool:
    """Tell whether each element of a convolution's input is part of some output."""
    filters = op.inputs[1].shape
    if op.get_attr("padding") != b"SAME" or filters.rank is None:
        return False
    sizes, strides = filters.as_list()[:2], op.get_attr("strides")
    across = strides[1:3] if op.get_attr("data_format") == b"NHWC" else strides[2:4]
    dense = all(dilation == 1 for dilation in op.get_attr("dilations"))
    return dense and all(n is not None and s <= n for s, n in zip(across, sizes, strict=True))


def writes(op: tf.Operation) -> bool:
    """Tell whether an op writes a variable, which then is its first input."""
    return op.type in WRITES or op.type.startswith(APPLIES)


def written_values(op: tf.Operation) -> list[tf.Tensor]:
    """Return the floating tensors that an op which writes a variable writes, or updates it by."""
    if op.type in WRITES:
        return [op.inputs[len(op.inputs) - 1]]
    names = [argument.name for argument in op.op_def.input_arg]
    found = [t for name, t in zip(names, op.inputs, strict=False) if name in ("grad", "delta")]
    return found or list(op.inputs)[1:]
