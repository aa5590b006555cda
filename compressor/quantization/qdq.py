"""Write a placement into an ONNX graph: Q/DQ pairs, integer weights, and nothing kept twice.

Biases of convolutions stay float: ONNX Runtime turns them into 32-bit integers while it loads
(verified with 1.31), so storing the scales of such integers as well would only cost bytes. It does
not do so for Gemm, whose bias is stored as integers therefore.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.quantization.calibration import Range
from compressor.quantization.guards import GUARD, guarded
from compressor.quantization.onnx_index import Index, Names, take_over_names
from compressor.quantization.onnx_weights import FLOAT8_LARGEST, float8, quantize_weight
from compressor.quantization.placement import Placement, gate_factors
from exporters._onnx_graph import drop_dead_weights, graphs, output_axis, replace
from exporters.base import QuantScheme


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of one activation."""

    scale: np.float32
    zero: Any


def grid(bounds: Range, scheme: QuantScheme) -> Grid:
    """The 8-bit grid over `bounds`, which is widened to hold 0 exactly."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    if scheme.number == "float8":
        return Grid(_scale(max(-low, high) / FLOAT8_LARGEST), float8().type(0))
    kind = np.int8 if scheme.activation_signed else np.uint8
    bottom, top = int(np.iinfo(kind).min), int(np.iinfo(kind).max)
    if scheme.activation_symmetric:
        peak = max(-low, high)
        middle = (bottom + top + 1) // 2
        return Grid(_scale(peak / (top - middle)), kind(middle))
    scale = _scale((high - low) / (top - bottom))
    return Grid(scale, kind(np.clip(round(bottom - low / float(scale)), bottom, top)))


def _scale(step: float) -> np.float32:
    """`step`, or 1 where it is 0 or so small that engines take it for 0."""
    return np.float32(step if step >= np.finfo(np.float32).tiny else 1.0)


class _Writer:
    def __init__(self, graph: Any, scheme: QuantScheme) -> None:
        self.graph, self.scheme = graph, scheme
        self.names = Names(*graphs(graph))
        self.shared: dict[bytes, str] = {}
        self.pairs: dict[str, tuple[str, str]] = {}
        self.scales: dict[str, Any] = {}
        self.replaced: dict[str, str] = {}

    def value(self, wanted: str, array: Any) -> str:
        """Name of an initializer that holds `array`; equal scalars share one."""
        import onnx

        key = str(array.dtype).encode() + array.tobytes()
        if array.ndim == 0 and key in self.shared:
            return self.shared[key]
        name = self.names.new(wanted)
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        if array.ndim == 0:
            self.shared[key] = name
        return name

    def replacement(self, old: str, array: Any) -> str:
        """Name of an initializer that takes the place of `old`, and its name where that goes."""
        name = self.value(old, array)
        self.replaced[name] = old
        return name

    def pair(self, source: str, grid_: Grid, result: str | None = None) -> list[Any]:
        """QuantizeLinear and DequantizeLinear nodes; the result is named `result` if given."""
        import onnx

        integers, out = self.names.new("q"), result or self.names.new("d")
        scale, zero = (
            self.value("s", np.asarray(grid_.scale)),
            self.value("z", np.asarray(grid_.zero)),
        )
        self.pairs[source if result is None else result] = (integers, out)
        return [
            onnx.helper.make_node("QuantizeLinear", [source, scale, zero], [integers]),
            onnx.helper.make_node("DequantizeLinear", [integers, scale, zero], [out]),
        ]


def write_qdq(
    model: Any, graph: Index, plan: Placement, ranges: Mapping[str, Range], scheme: QuantScheme
) -> None:
    """Change `model` (which `graph` indexes) in place as `plan` says.

    Float weights of integer nodes are replaced by their 8-bit numbers; nothing is kept twice.
    """
    writer = _Writer(model.graph, scheme)
    fixed = {n.output[0]: _gate_grid(scheme) for n in model.graph.node if n.name in plan.gates}
    own = {root: fixed.get(root) or grid(ranges[root], scheme) for root in plan.roots.values()}
    grids = {name: own[root] for name, root in plan.roots.items()}
    nodes: list[Any] = []
    for name in plan.roots:
        if name not in plan.made_here and name not in graph.producers:
            nodes += writer.pair(name, grids[name])
    dequantized: dict[tuple[str, int], str] = {}
    sources = {node.name: node.input[0] for node in model.graph.node if node.input}
    integer, apart = set(plan.integer), guarded(graph, scheme, plan)
    for node in model.graph.node:
        before, after = _rewrite(node, writer, plan, grids, integer)
        if node.name in apart:
            before.append(_guard(node, writer))
        if node.name in plan.weights:
            before += _weight(node, graph, writer, dequantized)
            if node.op_type == "Gemm" and len(node.input) > 2 and not scheme.explicit:
                before += _integer_bias(node, graph, writer, grids[sources[node.name]])
        nodes += [*before, node, *after]
    replace(model.graph.node, nodes)
    drop_dead_weights(model.graph)
    take_over_names(model.graph, writer.replaced)


def _rewrite(
    node: Any, writer: _Writer, plan: Placement, grids: Mapping[str, Grid], integer: set[str]
) -> tuple[list[Any], list[Any]]:
    """Nodes to put before and after `node`, whose own inputs and outputs are renamed."""
    before, after = [], []
    if node.name in plan.gates:
        before = _gate(node, writer, grids[node.input[0]])
    elif node.name in integer:
        for i, name in enumerate(node.input):
            if name in writer.pairs:
                node.input[i] = writer.pairs[name][1]
    for i, name in enumerate(node.output):
        if name not in plan.roots:
            continue
        if name in plan.made_here:
            node.output[i] = writer.names.new("r")
            after += writer.pair(node.output[i], grids[name], name)
        else:
            after += writer.pair(name, grids[name])
    return before, after


def _guard(node: Any, writer: _Writer) -> Any:
    """A node that keeps the engine from fusing `node` with what makes its first input."""
    import onnx

    source, node.input[0] = node.input[0], writer.names.new("k")
    return onnx.helper.make_node(GUARD, [source], [node.input[0]])


def _weight(
    node: Any, graph: Index, writer: _Writer, dequantized: dict[tuple[str, int], str]
) -> list[Any]:
    """Point `node` to 8-bit weights; returns the nodes that dequantize them, if not there yet."""
    import onnx

    tensor = graph.weights[node.input[1]]
    axis = output_axis(node, len(tensor.dims))
    if (tensor.name, axis) in dequantized:
        node.input[1] = dequantized[tensor.name, axis]
        return []
    per_channel = axis if writer.scheme.weight_per_channel else None
    values = onnx.numpy_helper.to_array(tensor)
    integers, scale = quantize_weight(values, per_channel, writer.scheme)
    inputs = [writer.replacement(tensor.name, integers), writer.value("ws", scale)]
    if node.op_type == "Gemm" and not writer.scheme.explicit:  # QGemm alone insists on a zero point
        inputs.append(writer.value("wz", np.zeros(scale.shape, np.int8)))
    made = writer.names.new("w")
    dequantized[tensor.name, axis] = made
    writer.scales[made] = scale
    node.input[1] = made
    more = {} if per_channel is None else {"axis": axis}
    return [onnx.helper.make_node("DequantizeLinear", inputs, [made], **more)]


def _integer_bias(node: Any, graph: Index, writer: _Writer, source: Grid) -> list[Any]:
    """A bias in 32-bit integers at the scale of the products, where it is a constant row."""
    import onnx

    tensor = graph.weights.get(node.input[2]) or next(
        (t for t in writer.graph.initializer if t.name == node.input[2]), None
    )
    if tensor is None or len(tensor.dims) != 1:
        return []
    scale = (source.scale * writer.scales[node.input[1]]).astype(np.float32)
    bias = np.rint(onnx.numpy_helper.to_array(tensor) / scale.astype(np.float64))
    integers = np.clip(bias, -(2**31), 2**31 - 1).astype(np.int32)
    made = writer.names.new("b")
    inputs = [writer.replacement(tensor.name, integers), writer.value("bs", scale)]
    node.input[2] = made
    more = {"axis": 0} if scale.ndim else {}
    return [onnx.helper.make_node("DequantizeLinear", inputs, [made], **more)]


def _gate_grid(scheme: QuantScheme) -> Grid:
    kind = np.int8 if scheme.activation_signed else np.uint8
    return Grid(np.float32(1 / 255), kind(np.iinfo(kind).min))


def _gate(node: Any, writer: _Writer, source: Grid) -> list[Any]:
    """Make a HardSigmoid, clip(alpha·x + beta, 0, 1), an integer Add in place.

    The integers of x, read with alpha times their scale, plus the constant beta, written on a grid
    of [0, 1], whose ends do the clipping. ONNX Runtime has QLinearAdd but no integer HardSigmoid.
    """
    import onnx

    alpha, beta = gate_factors(node)
    top = np.iinfo(source.zero.dtype).max
    integers = writer.pairs[node.input[0]][0]
    zero = writer.value("z", np.asarray(source.zero))
    scaled, shift = writer.names.new("g"), writer.names.new("g")
    scale = writer.value("s", np.asarray(source.scale * np.float32(alpha)))
    constant = writer.value("c", np.asarray(source.zero.dtype.type(top)))
    parts = (
        constant,
        writer.value("s", np.asarray(np.float32(beta / int(top)))),
        writer.value("z", np.asarray(source.zero.dtype.type(0))),
    )
    node.op_type = "Add"
    del node.attribute[:]
    node.input[:] = [scaled, shift]
    return [
        onnx.helper.make_node("DequantizeLinear", [integers, scale, zero], [scaled]),
        onnx.helper.make_node("DequantizeLinear", parts, [shift]),
    ]
