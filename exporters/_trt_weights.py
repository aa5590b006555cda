"""Constants as TensorRT takes them: INT8 or FP8 behind a DequantizeLinear in front of products
whose input is quantized too, and INT4 in blocks in front of MatMuls and Gemms that read floats.

Everything else is written out in float: what is stored in fewer bits, biases in 32-bit integers,
other weights of layers whose input is not quantized (TensorRT would compute those in float anyway).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exporters._onnx_graph import attribute, output_axis
from exporters._trt_edit import Editor, point
from exporters._trt_graph import CONVOLUTIONS, DEQUANTIZE, MULTIPLYING, QUANTIZE, Array, View

_FOLDED = frozenset({"Cast", "Mul", QUANTIZE})
_FLOAT8, _LARGEST = "float8e4m3fn", 448.0
# Of columns of a channel with a scale of their own; TensorRT-RTX 1.7.1 multiplies with INT4 weights
# of these in one kernel, and writes those with a scale for a whole channel out at every call.
_BLOCKS = (128, 64, 32, 16)


def fold_storage(edit: Editor) -> int:
    """Compute what is made of constants alone: casts from few bits, scales, rounded weights."""
    count = 0
    while True:
        made = [n for n in edit.graph.node if n.op_type in _FOLDED and _constant(edit.view, n)]
        if not made:
            return count
        for node in made:
            name = edit.constant(node.output[0] + "/value", _folded(edit.view, node))
            for reader in edit.view.readers.get(node.output[0], []):
                point(reader, node.output[0], name)
        edit.drop(made)
        edit.changed()
        count += len(made)


def _constant(view: View, node: Any) -> bool:
    named = [name for name in node.input if name]
    return all(name in view.weights for name in named) and node.output[0] not in view.outputs


def _folded(view: View, node: Any) -> Array:
    import onnx

    values = [view.array(name) for name in node.input if name]
    first: Any = values[0]
    if node.op_type == "Cast":
        kind = onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to", 1))
        return np.asarray(first).astype(kind)
    if node.op_type == "Mul":
        return np.asarray(first * values[1], first.dtype)
    axis, rank = attribute(node, "axis", 1), first.ndim
    scale, zero = _along(values[1], axis, rank), _along(view.zero(node), axis, rank)
    if view.kind(node) == _FLOAT8:
        kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN)
        return np.asarray(np.clip(first / scale, -_LARGEST, _LARGEST).astype(kind))
    kind = np.dtype(view.kind(node))
    limits = np.iinfo(kind)
    rounded = np.rint(first / scale) + zero.astype(np.int32)
    return np.asarray(np.clip(rounded, limits.min, limits.max).astype(kind))


def _along(values: Any, axis: int, rank: int) -> Array:
    """A vector of scales or zero points with the shape that fits a tensor of `rank`."""
    array = np.asarray(values)
    if array.size == 1:
        return array.reshape(())
    return array.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def turn_weights(edit: Editor) -> int:
    """Turn quantized weights that a Transpose turns before a product reads them."""
    import onnx

    count = 0
    for node in edit.view.nodes("Transpose"):
        made = edit.view.weight(node.input[0])
        integers = None if made is None else edit.view.array(made.input[0])
        if made is None or integers is None or attribute(made, "block_size", 0):
            continue
        if node.output[0] in edit.view.outputs:
            continue
        order = list(attribute(node, "perm", list(range(integers.ndim))[::-1]))
        turned = edit.constant(made.input[0] + "/turned", integers.transpose(order))
        axis = order.index(attribute(made, "axis", 1) % integers.ndim)
        copy = onnx.NodeProto()
        copy.CopyFrom(made)
        copy.name, copy.input[0], copy.output[0] = node.name, turned, node.output[0]
        del copy.attribute[:]
        copy.attribute.append(onnx.helper.make_attribute("axis", axis))
        node.CopyFrom(copy)
        count += 1
    edit.changed()
    return count


def in_blocks(edit: Editor) -> int:
    """Give INT4 weights that float MatMuls and Gemms read scales by block; how many changed.

    The scale of a channel is repeated for its blocks, UINT4 around 8 becomes INT4: the same values.
    """
    count = 0
    for made in edit.view.nodes(DEQUANTIZE):
        axis = _columns(edit.view, made)
        integers, scale, zero = _stored(edit.view, made)
        if axis is None or integers is None or scale is None or zero is None:
            continue
        kind, size = edit.view.kind(made), integers.shape[axis]
        block, old = attribute(made, "block_size", 0), attribute(made, "axis", 1) % 2
        middle = {"int4": 0, "uint4": 8}.get(kind)
        if middle is None or (zero.astype(int) != middle).any():
            continue
        if block in {0, size}:
            block = next((b for b in _BLOCKS if size % b == 0 and size > b), 0)
            if not block or (scale.size > 1 and scale.ndim == 1 and old == axis):
                continue
            wide = np.broadcast_to(scale.reshape(-1), (integers.shape[1 - axis],))
            scale = np.repeat(np.expand_dims(wide, axis), size // block, axis)
        elif kind == "int4":
            continue
        _write_blocks(edit, made, integers.astype(np.int8) - middle, scale, axis, block)
        count += 1
    edit.changed()
    return count


def _stored(view: View, made: Any) -> tuple[Any, Any, Any]:
    return view.array(made.input[0]), view.scale(made), view.zero(made)


def _write_blocks(
    edit: Editor, made: Any, integers: Array, scale: Array, axis: int, block: int
) -> None:
    import onnx

    kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4)
    made.input[:] = [
        edit.constant(made.input[0] + "/int4", integers.astype(kind)),
        edit.constant(made.input[1] + "/blocks", scale),
    ]
    del made.attribute[:]
    for name, value in (("axis", axis), ("block_size", block)):
        made.attribute.append(onnx.helper.make_attribute(name, value))


def _columns(view: View, made: Any) -> int | None:
    """The axis that products sum over in the matrix that `made` dequantizes for them alone.

    None where something else reads it, or a product whose other operand is quantized too.
    """
    readers = view.readers.get(made.output[0], [])
    found = {1 - output_axis(reader, 2) for reader in readers if weight_alone(view, reader)}
    one = len(found) == 1 and all(weight_alone(view, reader) for reader in readers)
    return found.pop() if one and made.output[0] not in view.outputs else None


def weight_alone(view: View, node: Any) -> bool:
    """Is it a product of floats with a matrix in 4 bits?"""
    if node.op_type not in {"Gemm", "MatMul"} or view.pair(node.input[0]) is not None:
        return False
    made = view.weight(node.input[1])
    integers = None if made is None else view.array(made.input[0])
    return integers is not None and integers.ndim == 2 and view.kind(made) in {"int4", "uint4"}


def expand(edit: Editor) -> int:
    """Write constants behind a DequantizeLinear in float, where no integer product reads them."""
    count = 0
    for made in edit.view.nodes(DEQUANTIZE):
        integers = edit.view.array(made.input[0])
        if integers is None or made.output[0] in edit.view.outputs:
            continue
        floats = [r for r in edit.view.readers.get(made.output[0], [])
                  if not _in_integers(edit.view, r, made)]  # fmt: skip
        if not floats:
            continue
        name = edit.constant(made.input[0] + "/float", dequantized(edit.view, made, integers))
        for reader in floats:
            point(reader, made.output[0], name)
        count += 1
    edit.drop_unread()
    return count


def _in_integers(view: View, reader: Any, made: Any) -> bool:
    """Does a product with a quantized input read the weight, or one of floats its blocks?"""
    if attribute(made, "block_size", 0) and view.kind(made) == "int4":
        return weight_alone(view, reader)
    return (
        reader.op_type in MULTIPLYING
        and list(reader.input).index(made.output[0]) == 1
        and view.pair(reader.input[0]) is not None
        and not attribute(made, "block_size", 0)
    )


def dequantized(view: View, node: Any, integers: Array) -> Array:
    """What a DequantizeLinear makes of a constant, in the type of its scale."""
    scale, zero = np.asarray(view.scale(node)), np.asarray(view.zero(node))
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    values = integers.astype(np.float64)
    if block:
        size = integers.shape[axis]
        scale = np.repeat(scale, block, axis=axis).take(np.arange(size), axis=axis)
        zero = zero if zero.ndim == 0 else np.repeat(zero, block, axis).take(range(size), axis)
    else:
        scale, zero = _along(scale, axis, values.ndim), _along(zero, axis, values.ndim)
    exact = (values - zero.astype(np.float64)) * scale.astype(np.float64)
    return np.asarray(exact.astype(np.asarray(view.scale(node)).dtype))


def signed(edit: Editor) -> int:
    """Write weights as INT8 around 0, where their integers less the zero point fit.

    FP8 and blocks stay; one scale for all gets no dimensions in any case.
    """
    count = 0
    for made in edit.view.nodes(DEQUANTIZE):
        integers, zero = edit.view.array(made.input[0]), edit.view.zero(made)
        if integers is None or zero is None or edit.view.kind(made) in {"int32", ""}:
            continue
        if attribute(made, "block_size", 0):
            continue
        zeros = _along(zero, attribute(made, "axis", 1), max(integers.ndim, 1))
        shifted = integers.astype(np.float64) - zeros.astype(np.float64)
        float8 = edit.view.kind(made) == _FLOAT8
        if float8 and zero.astype(np.float64).any():
            continue
        if not float8 and shifted.size and (shifted.min() < -128 or shifted.max() > 127):
            continue
        del made.input[2:]
        scale = edit.view.scale(made)
        if scale is not None and scale.ndim and scale.size == 1:
            made.input[1] = edit.constant(made.input[1] + "/scalar", scale.reshape(()))
        if not float8 and (integers.dtype != np.int8 or zero.any()):
            made.input[0] = edit.constant(made.input[0] + "/int8", shifted.astype(np.int8))
            count += 1
    edit.changed()
    return count


def fold_norms(edit: Editor) -> int:
    """Fold a BatchNormalization into the scales of the quantized weights before it."""
    gone = []
    for norm in edit.view.nodes("BatchNormalization"):
        layer = edit.view.maker(norm.input[0], *CONVOLUTIONS)
        if layer is None or edit.view.only_reader(norm.input[0]) is None:
            continue
        made = edit.view.weight(layer.input[1])
        if made is not None and _fold_norm(edit, norm, layer, made):
            layer.output[0] = norm.output[0]
            gone.append(norm)
    edit.drop(gone)
    edit.changed()
    return len(gone)


def _fold_norm(edit: Editor, norm: Any, layer: Any, made: Any) -> bool:
    view = edit.view
    integers, scale = view.array(made.input[0]), view.scale(made)
    bias = view.array(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else np.zeros(1)
    parts = [view.array(name) for name in norm.input[1:5]]
    if integers is None or scale is None or bias is None or any(p is None for p in parts):
        return False
    if attribute(layer, "group", 1) > 1 and layer.op_type == "ConvTranspose":
        return False
    gain, shift, mean, variance = (np.asarray(p, np.float64) for p in parts)
    factor = gain / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    axis = output_axis(layer, integers.ndim)
    signs = _along(np.where(factor < 0, -1, 1), axis, integers.ndim)
    turned = integers.astype(np.float32) * signs
    if integers.dtype == np.int8:
        turned = np.clip(turned, -127, 127)
    scales = np.broadcast_to(scale.astype(np.float64), factor.shape) * np.abs(factor)
    if not (scales > 0).all():
        return False
    weight = made.output[0]
    layer.input[1] = edit.node(
        DEQUANTIZE,
        [edit.constant(made.input[0] + "/folded", turned.astype(integers.dtype)),
         edit.constant(made.input[1] + "/folded", scales.astype(scale.dtype))],
        weight + "/folded",
        axis=axis,
    )  # fmt: skip
    moved = (bias.astype(np.float64) - mean) * factor + shift
    del layer.input[2:]
    layer.input.append(edit.constant(norm.input[2] + "/folded", moved.astype(scale.dtype)))
    return True
