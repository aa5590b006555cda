"""How stored weights are written into an ONNX graph (see `quantize_weights` for the forms)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from compressor.quantization.onnx_find import Weight
from compressor.quantization.onnx_index import Index, Names, take_over_names
from compressor.quantization.onnx_weights import broadcast, int4_tensor
from compressor.quantization.storage import Rounded
from exporters._onnx_graph import (
    MICROSOFT,
    attribute,
    drop_dead_weights,
    graphs,
    import_microsoft,
    rename_reads,
    replace,
)

_LEAST_HALF = 1e-4  # half precision has its full 11 bits above 6.1e-5
# A lookup in integers costs 4 µs a call; a table of fewer values is not worth it in memory.
_LEAST_TABLE = 1 << 20


def blockable(weight: Weight, block: int) -> bool:
    """Can runs of `block` columns of this weight have scales of their own, folded at load?"""
    return weight.dequantize is None and divides(weight.values.shape, weight.axis, block)


def divides(shape: Sequence[int], axis: int, block: int) -> bool:
    """Do whole runs of `block` columns lie in the channels (along `axis`) of a weight?"""
    columns = math.prod(shape) // shape[axis]
    if not block:
        return False
    flat = axis == 0 or len(shape) == 2 or (axis == 1 and shape[0] == 1)
    return flat and columns % block == 0 and columns > block


def computable(weight: Weight, graph: Index, block: int) -> bool:
    """Can ONNX Runtime compute with this weight's blocks as they are (MatMulNBits)?

    Every reader must be a MatMul or plain Gemm on a matrix whose columns fill whole blocks.
    """
    name, shape = weight.tensor.name, weight.values.shape
    if weight.dequantize is not None or weight.nested or len(shape) != 2:
        return False
    if block < 16 or block & (block - 1) or shape[1 - weight.axis] % block:
        return False
    readers = graph.consumers.get(name, [])
    used = [use.node for use in weight.uses if use.port == 1 and use.node.input[1] == name]
    return len(readers) == len(used) and all(_plain_product(node) for node in used)


def large_table(weight: Weight, graph: Index) -> bool:
    """Is this a table worth looking integers up in, and does every reader look its rows up?"""
    plain = weight.dequantize is None and weight.axis == 0 and not weight.nested
    if not plain or weight.values.ndim != 2 or weight.values.size < _LEAST_TABLE:
        return False
    return all(
        node.op_type == "Gather"
        and node.input[0] == weight.tensor.name
        and attribute(node, "axis", 0) == 0
        for node in graph.consumers.get(weight.tensor.name, [])
    )


def _plain_product(node: Any) -> bool:
    if node.op_type == "MatMul":
        return True
    scaled = attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
    return node.op_type == "Gemm" and not scaled and not attribute(node, "transA", 0)


def dequantized(stored: Rounded, axis: int) -> Any:
    """The float values that `stored` stands for."""
    if stored.bits == 16:
        return stored.integers.astype(np.float32)
    values = stored.integers.astype(np.float32)
    if not stored.block:
        return values * broadcast(stored.scale, axis, values.ndim)
    rows = np.moveaxis(values, axis, 0)
    flat = rows.reshape(len(rows), -1, stored.block) * stored.scale[:, :, None]
    return np.ascontiguousarray(np.moveaxis(flat.reshape(rows.shape), 0, axis))


class StorageWriter:
    """Puts integers into a graph and drops what they replace."""

    def __init__(self, model: Any, graph: Index, *, explicit: bool = False) -> None:
        self.model, self.graph, self.explicit = model, graph, explicit
        self.names = Names(*graphs(model.graph))
        self.replaced: dict[str, str] = {}

    def write(
        self, weights: Sequence[Weight], made: Mapping[str, Rounded], computed: Collection[str] = ()
    ) -> None:
        """Store `weights` as `made` (by tensor name) says; INT8 ones only change for 4 bits.

        Those in `computed` are not expanded at load: MatMulNBits computes with their blocks.
        """
        first: list[Any] = []
        before: dict[str, list[Any]] = {}
        renamed: dict[str, str] = {}
        main = {node.name for node in self.model.graph.node}
        for weight in weights:
            stored = made[weight.tensor.name]
            if weight.tensor.name in computed and stored.bits != 16:
                form = self._explicit_form if self.explicit else self._computed_form
                first += form(weight, stored)
            elif self._looked_up(weight, stored):
                self._lookup_form(weight, stored, before)
            elif weight.dequantize is None:
                nodes = self._float_form(weight, stored, renamed)
                start = self._first_reader(weight)
                if weight.nested or start not in main:
                    first += nodes
                else:
                    before.setdefault(start, []).extend(nodes)
            elif stored.bits == 4:
                key = weight.dequantize.output[0]
                before.setdefault(key, []).extend(self._integer_form(weight, stored))
        rename_reads(self.model.graph, renamed)
        nodes = first
        for node in self.model.graph.node:
            key = node.output[0] if node.op_type == "DequantizeLinear" else node.name
            nodes += [*before.get(key, ()), node]
        replace(self.model.graph.node, nodes)
        drop_dead_weights(self.model.graph)
        take_over_names(self.model.graph, self.replaced)

    def _first_reader(self, weight: Weight) -> str:
        return str(self.graph.consumers[weight.tensor.name][0].name)

    def _tensor(self, weight: Weight, stored: Rounded, shape: Sequence[int]) -> str:
        """Name of a new initializer with the integers."""
        import onnx

        name = self.names.new(weight.tensor.name)
        self.replaced[name] = weight.tensor.name
        values = stored.integers.reshape(shape)
        made = (
            int4_tensor(values, name)
            if stored.bits == 4
            else onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)
        )
        self.model.graph.initializer.append(made)
        return name

    def array(self, wanted: str, array: Any) -> str:
        """Name of a new initializer that holds `array`."""
        import onnx

        name = self.names.new(wanted)
        self.model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _scales(self, scale: Any) -> tuple[str, list[Any]]:
        """Name of float scales of blocks, kept in half precision where that is exact enough."""
        import onnx

        if not fit_half(scale):
            return self.array("ws", scale), []
        half, made = self.array("ws", scale.astype(np.float16)), self.names.new("ws")
        return made, [onnx.helper.make_node("Cast", [half], [made], to=onnx.TensorProto.FLOAT)]

    def _float_form(self, weight: Weight, stored: Rounded, renamed: dict[str, str]) -> list[Any]:
        import onnx

        shape = weight.values.shape
        blocked, spread = blocked_shapes(shape, weight.axis, stored)
        integers = self._tensor(weight, stored, blocked)
        floats, floating = self.names.new("w"), onnx.TensorProto.FLOAT
        nodes = [onnx.helper.make_node("Cast", [integers], [floats], to=floating)]
        out = floats
        if stored.bits != 16:
            values = blocked_scales(stored, shape, weight.axis).reshape(spread)
            if stored.block:
                scale, more = self._scales(values)
                nodes += more
            else:
                scale = self.array("ws", values)
            out = self.names.new("w")
            nodes.append(onnx.helper.make_node("Mul", [floats, scale], [out]))
        if blocked != shape:
            flat, out = out, self.names.new("w")
            size = self.array("wr", np.asarray(shape, np.int64))
            nodes.append(onnx.helper.make_node("Reshape", [flat, size], [out]))
        renamed[weight.tensor.name] = out
        return nodes

    def _computed_form(self, weight: Weight, stored: Rounded) -> list[Any]:
        """Turn every reader into MatMulNBits; its integers are unsigned around half their range."""
        import onnx

        rows = np.moveaxis(stored.integers, weight.axis, 0)
        whole = (rows.astype(np.int16) + (1 << (stored.bits - 1))).astype(np.uint8)
        blocks = whole.reshape(len(rows), -1, stored.block)
        if stored.bits == 4:
            blocks = blocks[..., 0::2] | (blocks[..., 1::2] << 4)
        packed = self.array(weight.tensor.name, np.ascontiguousarray(blocks))
        self.replaced[packed] = weight.tensor.name
        scales, nodes = self._scales(stored.scale)
        more = {"K": rows.shape[1], "N": len(rows), "bits": stored.bits}
        for use in weight.uses:
            node = use.node
            bias = list(node.input[2:3]) if node.op_type == "Gemm" else []
            node.input[:] = [node.input[0], packed, scales, *(["", "", *bias] if any(bias) else [])]
            node.op_type, node.domain = "MatMulNBits", MICROSOFT
            del node.attribute[:]
            for name, value in {**more, "block_size": stored.block, "accuracy_level": 4}.items():
                node.attribute.append(onnx.helper.make_attribute(name, value))
        import_microsoft(self.model)
        return nodes

    def _explicit_form(self, weight: Weight, stored: Rounded) -> list[Any]:
        """INT4 and a DequantizeLinear by block, which TensorRT multiplies with as they are."""
        import onnx

        across = 1 - weight.axis
        scale = stored.scale.T if across == 0 else stored.scale
        inputs = [
            self._tensor(weight, stored, weight.values.shape),
            self.array("ws", np.ascontiguousarray(scale.astype(np.float32))),
        ]
        made = self.names.new("w")
        for use in weight.uses:
            use.node.input[use.port] = made
        more = {"axis": across, "block_size": stored.block}
        return [onnx.helper.make_node("DequantizeLinear", inputs, [made], **more)]

    def _looked_up(self, weight: Weight, stored: Rounded) -> bool:
        """Do its readers look up integers? Scales of blocks fit no rows."""
        return stored.bits != 16 and not stored.block and large_table(weight, self.graph)

    def _lookup_form(self, weight: Weight, stored: Rounded, before: dict[str, list[Any]]) -> None:
        """Look integers and their scales up and multiply those: the table stays in integers.

        Four bits are expanded to eight at load: ONNX Runtime looks no half bytes up.
        """
        import onnx

        make = onnx.helper.make_node
        table = self._tensor(weight, stored, weight.values.shape)
        scale = self.array("ws", stored.scale.reshape(-1, 1))
        readers = self.graph.consumers[weight.tensor.name]
        if stored.bits == 4:
            packed, table = table, self.names.new("w")
            cast = make("Cast", [packed], [table], to=onnx.TensorProto.INT8)
            before.setdefault(readers[0].name, []).append(cast)
        for node in readers:
            ids = node.input[1]
            whole, floats, by = (self.names.new(name) for name in ("w", "w", "ws"))
            before.setdefault(node.name, []).extend(
                [
                    make("Gather", [table, ids], [whole]),
                    make("Gather", [scale, ids], [by]),
                    make("Cast", [whole], [floats], to=onnx.TensorProto.FLOAT),
                ]
            )
            node.op_type, node.input[:] = "Mul", [floats, by]
            del node.attribute[:]

    def _integer_form(self, weight: Weight, stored: Rounded) -> list[Any]:
        import onnx

        cast, node = self.names.new("w"), weight.dequantize
        assert node is not None
        integers = self._tensor(weight, stored, weight.values.shape)
        self._rescale_biases(weight, stored.scale)
        node.input[0], node.input[1] = cast, self.array("ws", stored.scale)
        if stored.scale.ndim and not any(a.name == "axis" for a in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("axis", weight.axis))
        return [onnx.helper.make_node("Cast", [integers], [cast], to=onnx.TensorProto.INT8)]

    def _rescale_biases(self, weight: Weight, scale: Any) -> None:
        """Integer biases (of Gemm) are in units of input scale times weight scale."""
        import onnx

        assert weight.dequantize is not None
        for node in self.graph.consumers[weight.dequantize.output[0]]:
            bias = self.graph.producers.get(node.input[2]) if len(node.input) > 2 else None
            source = self.graph.producers.get(node.input[0])
            if bias is None or source is None or bias.op_type != "DequantizeLinear":
                continue
            old, was, unit = (
                onnx.numpy_helper.to_array(self.graph.weights[name]).astype(np.float64)
                for name in (bias.input[0], bias.input[1], source.input[1])
            )
            now = (unit * scale).astype(np.float32)
            integers = np.rint(old * was / now).clip(-(2**31), 2**31 - 1).astype(np.int32)
            bias.input[0] = self.array("b", integers)
            bias.input[1] = self.array("bs", now)


def fit_half(scale: Any) -> bool:
    """Are scales of blocks exact enough in half precision?"""
    top = float(np.finfo(np.float16).max)
    return float(scale.min()) >= _LEAST_HALF and float(scale.max()) <= top


def blocked_scales(stored: Rounded, shape: Sequence[int], axis: int) -> Any:
    """Scales in the order of `blocked_shapes`."""
    turned = stored.scale.T if stored.block and _lies(shape, axis) else stored.scale
    return np.ascontiguousarray(turned)


def _lies(shape: Sequence[int], axis: int) -> bool:
    """Do a weight's columns stand along its first axis ([columns, channels])?"""
    return axis == 1 and len(shape) == 2


def blocked_shapes(
    shape: tuple[int, ...], axis: int, stored: Rounded
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape the integers of a weight are stored in, and the scales' that multiplies it."""
    block = stored.block
    if stored.bits == 16 or not block:
        along = [1] * len(shape)
        along[axis] = -1
        return shape, tuple(along)
    rows = shape[axis]
    if _lies(shape, axis):
        return (shape[0] // block, block, rows), (shape[0] // block, 1, rows)
    return (rows, -1, block), (rows, -1, 1)
