"""Writes ONNX Runtime's dynamic INT8 kernels into a graph, with weights in 8 or 4 bits.

An LSTM's weights lie as [directions, inputs, 4·hidden] with one scale per direction and gate
output, a product's as [inputs, outputs] with one per output. In 4 bits: INT4 → `Cast`(INT8), or,
where an LSTM computes with one scale a direction, → `Cast` → `Mul` → `Round` → `Cast`(INT8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.quantization.calibration import batches
from compressor.quantization.onnx_dynamic_loop import GATES, loop_nodes
from compressor.quantization.onnx_dynamic_rounding import Rounded, input_means, round_weights
from compressor.quantization.onnx_index import Names, take_over_names
from compressor.quantization.onnx_weights import int4_tensor
from exporters._onnx_graph import MICROSOFT, drop_dead_weights, graphs, import_microsoft
from exporters._onnx_graph import replace as replace_items
from exporters.base import Env
from runtimes.types import TensorSpec

if TYPE_CHECKING:
    from compressor.quantization.onnx_dynamic import Layer


def write(
    model: Any,
    layers: Sequence[Layer],
    options: Any,
    env: Env,
    limit: int,
    inputs: Sequence[TensorSpec],
) -> dict[str, int]:
    """Change `model` in place so that `layers` run in dynamic INT8; returns weight → stored bits.

    Args:
        model: the `onnx.ModelProto` the layers belong to.
        layers: what to change.
        options: of `quantize_dynamic`.
        env: for calibration data.
        limit: largest magnitude of an 8-bit weight.
        inputs: the model's.
    """
    data, threads = env.data.get("calibration"), env.context.threads
    feeds = None if data is None else (lambda: batches(data, inputs, options.samples))
    rounded = round_weights(
        model, layers, options, limit, feeds if options.reconstruct else None, threads
    )
    means: Mapping[str, tuple[Any, Any]] = {}
    if feeds is not None and options.bias_correction:
        means = input_means(model, layers, feeds, threads)
    Writer(model, rounded, means).write(layers)
    return {
        tensor.name: rounded[layer.node.name, port].bits
        for layer in layers
        for port, tensor in layer.weights.items()
    }


class Writer:
    """Puts integers, constants and kernels into the graphs of one model."""

    def __init__(
        self, model: Any, rounded: Mapping[Any, Rounded], means: Mapping[str, tuple[Any, Any]]
    ) -> None:
        self.model, self.rounded, self.means = model, rounded, means
        self.names = Names(*graphs(model.graph))
        self.shared: dict[tuple[int, bytes], str] = {}
        self.stored: dict[tuple[int, str, int, bytes], str] = {}
        self.replaced: dict[str, str] = {}

    def write(self, layers: Sequence[Layer]) -> None:
        """Change the graphs, the innermost first: changing one copies what it holds."""
        import onnx

        by_graph: dict[int, list[Layer]] = {}
        for layer in layers:
            by_graph.setdefault(id(layer.graph), []).append(layer)
        for own in reversed(list(by_graph.values())):
            self._graph(own[0].graph, own)
        for graph in reversed(list(graphs(self.model.graph))):
            drop_dead_weights(graph)
            take_over_names(graph, self.replaced)
        import_microsoft(self.model)
        least = onnx.helper.find_min_ir_version_for(self.model.opset_import, True)
        self.model.ir_version = max(self.model.ir_version, least)

    def _graph(self, graph: Any, layers: Sequence[Layer]) -> None:
        taken = {layer.node.name: layer for layer in layers}
        gone = {layer.absorbed.name for layer in layers if layer.absorbed is not None}
        nodes: list[Any] = []
        for node in graph.node:
            if node.name in taken:
                nodes += self._changed(graph, taken[node.name])
            elif node.name not in gone:
                nodes.append(node)
        replace_items(graph.node, nodes)

    def _changed(self, graph: Any, layer: Layer) -> list[Any]:
        """What takes the place of a layer's node."""
        kind = layer.node.op_type
        if kind == "LSTM":
            return [*self._lstm(graph, layer), layer.node]
        if kind in GATES:
            weights = [self.rounded[layer.node.name, port] for port in (1, 2)]
            return loop_nodes(self, graph, layer, weights, self._bias(layer))
        return [*self._product(graph, layer), layer.node]

    def value(self, graph: Any, wanted: str, array: Any) -> str:
        """Name of an initializer of `graph` that holds `array`; equal ones share one."""
        import onnx

        key = id(graph), f"{array.dtype}{array.shape}".encode() + array.tobytes()
        if key not in self.shared:
            self.shared[key] = self.names.new(wanted)
            made = onnx.numpy_helper.from_array(array, self.shared[key])
            graph.initializer.append(made)
        return self.shared[key]

    def weight(
        self, graph: Any, old: str, bits: int, integers: Any, factor: Any = None
    ) -> tuple[list[Any], str]:
        """Nodes that make the INT8 weight, and its name; layers that share one share it here.

        With `factor`, 4-bit integers are multiplied by it and rounded while the model loads.
        """
        import onnx

        key = id(graph), old, bits, integers.tobytes()
        if key in self.stored:
            return [], self.stored[key]
        name = self.names.new(old)
        if old not in self.replaced.values():
            self.replaced[name] = old
        if bits == 8:
            graph.initializer.append(onnx.numpy_helper.from_array(integers, name))
            self.stored[key] = name
            return [], name
        graph.initializer.append(int4_tensor(integers, name))
        self.stored[key] = made = self.names.new("w")
        kinds = onnx.TensorProto
        if factor is None:
            return [onnx.helper.make_node("Cast", [name], [made], to=kinds.INT8)], made
        wide, even, whole = (self.names.new("w") for _ in range(3))
        by = self.value(graph, "wf", factor)
        return [
            onnx.helper.make_node("Cast", [name], [wide], to=kinds.FLOAT),
            onnx.helper.make_node("Mul", [wide, by], [even]),
            onnx.helper.make_node("Round", [even], [whole]),
            onnx.helper.make_node("Cast", [whole], [made], to=kinds.INT8),
        ], made

    def _lstm(self, graph: Any, layer: Layer) -> list[Any]:
        import onnx

        node, before = layer.node, []
        directions = layer.weights[1].dims[0]
        tail: list[str] = []
        made = {}
        for port, tensor in layer.weights.items():
            weight = self.rounded[node.name, port]
            shaped = weight.integers.reshape(directions, -1, weight.rows.shape[1])
            integers = np.ascontiguousarray(shaped.transpose(0, 2, 1))
            scale = weight.scale.reshape(directions, -1)
            factor = None
            if weight.even is not None:
                factor = (scale / weight.even[1][:, None])[:, None, :].astype(np.float32)
                scale = weight.even[1]
            nodes, made[port] = self.weight(graph, tensor.name, weight.bits, integers, factor)
            before += nodes
            tail.append(self.value(graph, "ws", scale))
            tail.append(self.value(graph, "wz", np.zeros(scale.shape, np.int8)))
        bias = self._bias(layer)
        rest = [*node.input[3:8], *[""] * (8 - len(node.input))]
        if bias is not None:
            old = layer.bias.name if layer.bias is not None else "b"
            rest[0] = self.names.new(old)
            self.replaced[rest[0]] = old
            graph.initializer.append(onnx.numpy_helper.from_array(bias, rest[0]))
        node.input[:] = [node.input[0], made[1], made[2], *rest[:5], *tail]
        node.op_type, node.domain = "DynamicQuantizeLSTM", MICROSOFT
        replace_items(node.attribute, [a for a in node.attribute if a.name != "layout"])
        return before

    def _bias(self, layer: Layer) -> Any | None:
        """The bias with what rounding takes from the mean of each gate's input; None: no bias."""
        import onnx

        node, directions = layer.node, layer.weights[1].dims[0]
        x, h = self.means.get(node.name, (None, None))
        if x is None:
            return None if layer.bias is None else onnx.numpy_helper.to_array(layer.bias)
        outputs = self.rounded[node.name, 1].rows.shape[0] // directions
        bias = (
            np.zeros((directions, 2, outputs))
            if layer.bias is None
            else onnx.numpy_helper.to_array(layer.bias).reshape(directions, 2, outputs).astype("f8")
        ).copy()
        bias[:, 0] += (self.rounded[node.name, 1].error @ x).reshape(directions, outputs)
        if h is not None:
            error = self.rounded[node.name, 2].error.reshape(directions, outputs, -1)
            bias[:, 1] += np.einsum("doh,dh->do", error, h)
        return bias.reshape(directions, -1).astype(np.float32)

    def _product(self, graph: Any, layer: Layer) -> list[Any]:
        import onnx

        node, weight = layer.node, self.rounded[layer.node.name, 1]
        tensor = layer.weights[1]
        integers = np.ascontiguousarray(weight.integers.T)
        before, made = self.weight(graph, tensor.name, weight.bits, integers)
        inputs = [node.input[0], made, self.value(graph, "ws", weight.scale)]
        bias = None if layer.bias is None else onnx.numpy_helper.to_array(layer.bias).reshape(-1)
        mean, _ = self.means.get(node.name, (None, None))
        if mean is not None:
            lost = weight.error @ mean
            bias = (lost if bias is None else bias + lost).astype(np.float32)
        if bias is not None:
            old = layer.bias.name if layer.bias is not None else "b"
            name = self.value(graph, self.names.new(old), bias)
            self.replaced.setdefault(name, old)
            inputs += ["", name]
        if layer.absorbed is not None:
            node.output[:] = layer.absorbed.output
        node.input[:] = inputs
        node.op_type, node.domain = "DynamicQuantizeMatMul", MICROSOFT
        del node.attribute[:]
        return before
