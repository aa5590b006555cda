"""Integer weights in an OpenVINO model: how they are recognised, read and written.

Two forms, found by experiment with OpenVINO 2026.4 (benchmarks/quantization_storage). Under INT8
kernels: `Constant(i4)` → `Convert(i8)` → `Convert(f32)` → `Multiply(scale)`; without the
`Convert(i8)` the convolution falls back to float. Under float layers: … → `Convert(i32)` →
`Convert(f32)` → `Multiply(scale)`, which is folded while the model compiles; without the
`Convert(i32)` OpenVINO takes it for compressed weights and expands it at every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.quantization.onnx_storage_write import (
    blocked_scales,
    blocked_shapes,
    divides,
    fit_half,
)
from compressor.quantization.storage import Rounded

WEIGHTED_TYPES = frozenset(
    {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData",
     "MatMul"}
)  # fmt: skip
RECURRENT_TYPES = frozenset(
    {"GRUSequence", "LSTMSequence", "RNNSequence", "GRUCell", "LSTMCell", "RNNCell"}
)
_PASSING = frozenset({"Convert", "Multiply", "Subtract", "Reshape", "FakeQuantize", "Transpose"})
_BITS = {"i4": 4, "u4": 4, "i8": 8, "u8": 8, "f16": 16, "bf16": 16, "f32": 32}


@dataclass
class Weight:
    """A constant that is a weight: the node to replace, its values, and how they are computed with.

    Attributes:
        name: friendly name of the (first) layer that reads it.
        top: node whose output the layers read: the constant, or the last of its dequantization.
        values: float32 values.
        integer: it dequantizes from INT8 under an integer layer, whose kernel must be kept.
        axis: axis of the output channels.
        grouped: the first two axes together are the output channels.
    """

    name: str
    top: Any
    values: Any
    integer: bool
    axis: int
    grouped: bool = False

    def rows(self) -> tuple[Any, int]:
        """The values with one axis of output channels, and that axis."""
        if not self.grouped:
            return self.values, self.axis
        return self.values.reshape(-1, *self.values.shape[2:]), 0

    def spread(self, made: Rounded) -> Rounded:
        """`made` from `rows()`: integers in the weight's shape, scales that broadcast to it.

        Scales of blocks stay [channels, blocks].
        """
        shape = self.values.shape
        if made.block:
            return made
        along = [1] * len(shape)
        if self.grouped:
            along[:2] = shape[:2]
        else:
            along[self.axis] = -1
        integers, scale = made.integers.reshape(shape), made.scale.reshape(along)
        return Rounded(integers, scale, made.bits, made.noise)


def readers_of(top: Any) -> list[tuple[Any, int]]:
    """Layers that compute with the weight `top` and the port they read it at."""
    found = []
    for port in top.output(0).get_target_inputs():
        node = port.get_node()
        if node.get_type_name() in {"Reshape", "Transpose"}:
            found += readers_of(node)
        else:
            found.append((node, port.get_index()))
    return sorted(found, key=lambda pair: (pair[0].get_friendly_name(), pair[1]))


def weight_bits(op: Any) -> int | None:
    """Storage width of the weight `op` reads; None where it reads none."""
    if op.get_type_name() not in WEIGHTED_TYPES:
        return None
    node = op.input_value(1).get_node()
    while node.get_type_name() in _PASSING:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    return _BITS.get(node.get_element_type().get_type_name())


def find_weights(model: Any, least: int) -> list[Weight]:
    """Weights of at least `least` values, once each, in topological order, those in bodies too."""
    found: dict[str, Weight] = {}
    for op in _all_ops(model):
        kind = op.get_type_name()
        if kind in WEIGHTED_TYPES:
            ports = [1]
        elif kind in RECURRENT_TYPES:
            ports = _recurrent_ports(op)
        elif kind == "Gather":
            ports = [0]
        else:
            continue
        for port in ports:
            made = _read(op, port, least)
            if made is not None:
                found.setdefault(made.top.get_friendly_name(), made)
    return list(found.values())


def _all_ops(model: Any) -> Iterator[Any]:
    """Every op in topological order, a loop's or branch's body before what it stands in.

    A body's constants get the name of their loop in front: names are unique in one body only.
    """
    for op in model.get_ordered_ops():
        for body in bodies(op):
            for inner in body.get_ordered_ops():
                name, outer = inner.get_friendly_name(), op.get_friendly_name()
                if inner.get_type_name() == "Constant" and not name.startswith(outer + "/"):
                    inner.set_friendly_name(f"{outer}/{name}")
            yield from _all_ops(body)
        yield op


def bodies(op: Any) -> list[Any]:
    """The models inside a TensorIterator, Loop or If; none in others."""
    kind = op.get_type_name()
    if kind in {"TensorIterator", "Loop"}:
        return [op.get_function()]
    return [op.get_function(0), op.get_function(1)] if kind == "If" else []


def _recurrent_ports(op: Any) -> list[int]:
    # W and R follow X, the initial states and the sequence lengths; B is small and stays float.
    first = {"LSTMSequence": 4, "LSTMCell": 3, "GRUCell": 2, "RNNCell": 2}.get(
        op.get_type_name(), 3
    )
    return [first, first + 1]


def _read(op: Any, port: int, least: int) -> Weight | None:
    top = op.input_value(port).get_node()
    while top.get_type_name() in {"Reshape", "Transpose"}:
        top = top.input_value(0).get_node()
    values, integer = _values(top)
    if values is None or values.size < least or values.ndim < 2:
        return None
    name = op.get_friendly_name().removesuffix("/WithoutBiases")
    rank = op.input_value(port).get_partial_shape().rank.get_length()
    grouped = op.get_type_name() == "GroupConvolution" and values.ndim == rank
    return Weight(name, top, values, integer, _axis(op, values.ndim), grouped)


def _values(top: Any) -> tuple[Any, bool]:
    """Float values of a constant or of `Convert`→`Multiply` over an INT8 one; (None, _) else."""
    if top.get_type_name() == "Constant":
        is_float = top.get_element_type().get_type_name() == "f32"
        return (np.array(top.get_data()) if is_float else None), False
    if top.get_type_name() != "Multiply":
        return None, False
    convert, scale = (top.input_value(i).get_node() for i in (0, 1))
    if convert.get_type_name() != "Convert" or scale.get_type_name() != "Constant":
        return None, False
    integers = convert.input_value(0).get_node()
    if integers.get_type_name() != "Constant" or _bits_of(integers) != 8:
        return None, False
    return integers.get_data().astype(np.float32) * scale.get_data().astype(np.float32), True


def _bits_of(constant: Any) -> int | None:
    return _BITS.get(constant.get_element_type().get_type_name())


def _axis(op: Any, rank: int) -> int:
    kind = op.get_type_name()
    if kind == "MatMul":
        return rank - 2 if op.get_attributes()["transpose_b"] else rank - 1
    if kind in RECURRENT_TYPES or kind == "ConvolutionBackpropData":
        return 1 if rank > 2 else 0
    return 0


def replace_weight(weight: Weight, integers: Any, scale: Any, bits: int) -> None:
    """Let every reader of `weight.top` read these integers times `scale` (that broadcasts)."""
    import openvino as ov
    from openvino import opset13

    node = _constant(integers, bits)
    if bits == 16:
        return _replace(weight, opset13.convert(node, ov.Type.f32))
    if not weight.integer:
        node = opset13.convert(node, ov.Type.i32)
    elif bits == 4:
        node = opset13.convert(node, ov.Type.i8)
    node = opset13.convert(node, ov.Type.f32)
    made = opset13.multiply(node, opset13.constant(np.ascontiguousarray(scale, np.float32)))
    return _replace(weight, made)


def _replace(weight: Weight, made: Any) -> None:
    made.set_friendly_name(weight.top.get_friendly_name())
    for reader in list(weight.top.output(0).get_target_inputs()):
        reader.replace_source_output(made.output(0))


def blockable(weight: Weight, block: int) -> bool:
    """Can runs of `block` columns of this weight have scales of their own, folded at load?"""
    return (
        not weight.integer
        and not weight.grouped
        and divides(weight.values.shape, weight.axis, block)
    )


def replace_blocked(weight: Weight, stored: Rounded) -> None:
    """Let every reader of `weight.top` read integers times scales by block, folded at load."""
    import openvino as ov
    from openvino import opset13

    shape, along = blocked_shapes(weight.values.shape, weight.axis, stored)
    node = _constant(stored.integers.reshape(shape), stored.bits)
    node = opset13.convert(opset13.convert(node, ov.Type.i32), ov.Type.f32)
    scale = blocked_scales(stored, weight.values.shape, weight.axis).reshape(along)
    if fit_half(scale):
        by = opset13.convert(opset13.constant(scale.astype(np.float16)), ov.Type.f32)
    else:
        by = opset13.constant(scale)
    whole = opset13.constant(np.array(weight.values.shape, np.int64))
    _replace(weight, opset13.reshape(opset13.multiply(node, by), whole, False))


def computable(weight: Weight, block: int) -> bool:
    """Does OpenVINO compute with this weight's blocks as they are? All readers must be MatMuls."""
    shape = weight.values.shape
    if weight.integer or len(shape) != 2 or not block or shape[1 - weight.axis] % block:
        return False
    if shape[1 - weight.axis] == block:
        return False
    readers = weight.top.output(0).get_target_inputs()
    return all(r.get_node().get_type_name() == "MatMul" and r.get_index() == 1 for r in readers)


def replace_computed(weight: Weight, stored: Rounded) -> None:
    """Let every MatMul that reads `weight.top` compute with compressed weights.

    The form OpenVINO's own weight compression writes: integers [channels, blocks, columns] →
    `Convert(f16)` → `Multiply` → `Reshape` → `Convert(f32)`.
    """
    import openvino as ov
    from openvino import opset13

    rows = np.ascontiguousarray(np.moveaxis(stored.integers, weight.axis, 0))
    blocks = rows.reshape(len(rows), -1, stored.block)
    half = opset13.convert(_constant(blocks, stored.bits), ov.Type.f16)
    scale = opset13.constant(stored.scale.astype(np.float16)[:, :, None])
    scaled = opset13.multiply(half, scale)
    flat = opset13.reshape(scaled, opset13.constant(np.array(rows.shape, np.int64)), False)
    made = opset13.convert(flat, ov.Type.f32)
    made.set_friendly_name(weight.top.get_friendly_name())
    for reader in list(weight.top.output(0).get_target_inputs()):
        old = reader.get_node()
        turned = bool(old.get_attributes()["transpose_a"])
        product = opset13.matmul(old.input_value(0), made, turned, True)
        product.output(0).get_tensor().set_names(old.output(0).get_names())
        product.set_friendly_name(old.get_friendly_name())
        for after in list(old.output(0).get_target_inputs()):
            after.replace_source_output(product.output(0))


def _constant(integers: Any, bits: int) -> Any:
    import openvino as ov
    from openvino import opset13

    from compressor.quantization.onnx_weights import pack_int4

    if bits != 4:
        return opset13.constant(np.ascontiguousarray(integers))
    tensor = ov.Tensor(ov.Type.i4, ov.Shape(list(integers.shape)))
    packed = np.frombuffer(pack_int4(integers), np.uint8)
    tensor.data.reshape(-1)[:] = packed.view(tensor.data.dtype)
    return ov.op.Constant(tensor)
