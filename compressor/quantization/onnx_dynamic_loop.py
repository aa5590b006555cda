"""GRU and RNN layers as a Scan over ONNX Runtime's dynamic INT8 product, which has no such layers.

One product for the inputs of all steps, then in the loop one of the state with the recurrent
weights and the gates in float; sequences of one step need no loop. Above a size the loop's overhead
costs less than INT8 saves: a GRU of 400 units took 0.55 of the time of the float kernel, an RNN of
512 units 0.35 (benchmarks/quantization_recurrent).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters._onnx_graph import MICROSOFT, attribute

if TYPE_CHECKING:
    from compressor.quantization.onnx_dynamic import Layer
    from compressor.quantization.onnx_dynamic_rounding import Rounded
    from compressor.quantization.onnx_dynamic_write import Writer

GATES = {"GRU": 3, "RNN": 1}
OPSET = 15  # of Shape with a start and an end
_PLAIN = {"GRU": (("sigmoid", "tanh"),), "RNN": (("tanh",), ("relu",))}


def why_no_loop(node: Any, opset: int) -> str:
    """Why a GRU or RNN cannot be written as such a loop; empty where it can."""
    if opset < OPSET:
        return f"operator set {opset}: the loop needs {OPSET}"
    if len(node.input) > 4 and node.input[4]:
        return "its sequences have lengths of their own"
    if attribute(node, "layout", 0):
        return "the kernel has no batch-first layout"
    if attribute(node, "clip", 0.0):
        return "it clips"
    if node.op_type == "GRU" and not attribute(node, "linear_before_reset", 0):
        return "its reset gate stands before the product, which would make it two"
    if _activations(node) not in _PLAIN[node.op_type]:
        return "its activations are not the usual ones"
    return ""


def _activations(node: Any) -> tuple[str, ...]:
    """Activations of one direction; empty where the directions differ."""
    usual = _PLAIN[node.op_type][0]
    named = [name.decode().lower() for name in attribute(node, "activations", [])]
    size = len(usual)
    directions = {tuple(named[i : i + size]) for i in range(0, len(named), size)} or {usual}
    return directions.pop() if len(directions) == 1 else ()


def loop_nodes(
    writer: Writer, graph: Any, layer: Layer, weights: Sequence[Rounded], bias: Any
) -> list[Any]:
    """The nodes that take the place of a GRU or RNN in `graph`.

    Args:
        writer: writes weights and constants into `graph`.
        graph: the graph the layer stands in.
        layer: the layer.
        weights: of the input and of the state, rows of all directions one below the other.
        bias: [directions, 2·gates·hidden], or None.
    """
    return _Loop(writer, graph, layer, weights, bias).nodes()


class _Loop:
    def __init__(
        self, writer: Writer, graph: Any, layer: Layer, weights: Sequence[Rounded], bias: Any
    ) -> None:
        self.writer, self.graph, self.node = writer, graph, layer.node
        self.directions, _, self.hidden = (int(size) for size in layer.weights[2].dims)
        self.rows = GATES[self.node.op_type] * self.hidden
        self.layer, self.weights, self.bias = layer, weights, bias
        self.made: list[Any] = []

    def nodes(self) -> list[Any]:
        parts = self._inputs()
        starts = self._starts()
        run = self._once if self.layer.single_step else self._scan
        results = [
            run(d, starts[d], parts[d * self._width() : (d + 1) * self._width()])
            for d in range(self.directions)
        ]
        for i, axis in ((0, 1), (1, 0)):
            if len(self.node.output) > i and self.node.output[i]:
                self._output(self.node.output[i], [result[i] for result in results], axis)
        return self.made

    def _width(self) -> int:
        return 2 if self.node.op_type == "GRU" else 1

    def _new(self) -> str:
        return str(self.writer.names.new("g"))

    def _axis(self, axis: int) -> str:
        return self.writer.value(self.graph, "axis", np.asarray([axis], np.int64))

    def _add(self, op: str, inputs: Sequence[str], count: int = 1, **more: Any) -> list[str]:
        names = [self._new() for _ in range(count)]
        self.made.append(_node(op, inputs, names, **more))
        return names

    def _product(self, which: int, rows: slice, source: str, label: str) -> tuple[list[Any], str]:
        """Nodes that multiply `source` with some rows of a weight and add their bias."""
        weight, tensor = self.weights[which], self.layer.weights[which + 1]
        integers = np.ascontiguousarray(weight.integers[rows].T)
        nodes, made = self.writer.weight(self.graph, tensor.name, weight.bits, integers)
        inputs = [source, made, self.writer.value(self.graph, "ws", weight.scale[rows])]
        if self.bias is not None:
            own = self.bias.reshape(self.directions, 2, -1)[:, which].reshape(-1)[rows]
            old = self.layer.bias.name if self.layer.bias is not None else "b"
            inputs += ["", self.writer.value(self.graph, self.writer.names.new(old), own)]
        name = self.writer.names.new(f"{self.node.name}/{label}")
        out = self._new()
        product = _node("DynamicQuantizeMatMul", inputs, [out], name=name, domain=MICROSOFT)
        self.made += nodes
        return [product], out

    def _inputs(self) -> list[str]:
        """What the inputs of all steps give each gate of each direction."""
        nodes, out = self._product(0, slice(None), self.node.input[0], "W")
        self.made += nodes
        sizes = [self.hidden] if self._width() == 1 else [2 * self.hidden, self.hidden]
        sizes = sizes * self.directions
        if len(sizes) == 1:
            return [out]
        split = self.writer.value(self.graph, "sizes", np.asarray(sizes, np.int64))
        return self._add("Split", [out, split], len(sizes), axis=-1)

    def _starts(self) -> list[str]:
        """The state of each direction before its first step."""
        node = self.node
        if len(node.input) > 5 and node.input[5]:
            parts = [node.input[5]]
            if self.directions == 2:
                one = self.writer.value(self.graph, "sizes", np.asarray([1, 1], np.int64))
                parts = self._add("Split", [node.input[5], one], 2, axis=0)
            return [self._add("Squeeze", [part, self._axis(0)])[0] for part in parts]
        (batch,) = self._add("Shape", [node.input[0]], start=1, end=2)
        hidden = self.writer.value(self.graph, "hidden", np.asarray([self.hidden], np.int64))
        (shape,) = self._add("Concat", [batch, hidden], axis=0)
        return self._add("ConstantOfShape", [shape]) * self.directions

    def _scan(self, direction: int, start: str, parts: Sequence[str]) -> tuple[str, str]:
        """(outputs of all steps, last state) of one direction."""
        import onnx

        backwards = direction == 1 or attribute(self.node, "direction", b"forward") == b"reverse"
        state, steps = self._new(), [self._new() for _ in parts]
        rows = slice(direction * self.rows, (direction + 1) * self.rows)
        product, out = self._product(1, rows, state, "R")
        body = [*product, *self._cell(state, steps, out)]
        after, copy = body[-1].output[0], self._new()
        body.append(_node("Identity", [after], [copy]))  # one name for two results gives noise
        value = onnx.helper.make_tensor_value_info
        floats = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            body,
            "step",
            [value(name, floats, None) for name in (state, *steps)],
            [value(name, floats, None) for name in (after, copy)],
        )
        more: dict[str, Any] = {"body": graph, "num_scan_inputs": len(parts)}
        if backwards:
            more |= {"scan_input_directions": [1] * len(parts), "scan_output_directions": [1]}
        last, all_steps = self._add("Scan", [start, *parts], 2, **more)
        name = self.node.name
        self.made[-1].name = self.writer.names.new(f"{name}/reverse") if direction else name
        return all_steps, last

    def _once(self, direction: int, start: str, parts: Sequence[str]) -> tuple[str, str]:
        """The same for sequences of one step, which need no loop."""
        now = [self._add("Squeeze", [part, self._axis(0)])[0] for part in parts]
        rows = slice(direction * self.rows, (direction + 1) * self.rows)
        product, out = self._product(1, rows, start, "R")
        cell = self._cell(start, now, out)
        name = self.node.name  # the layer's name goes to the kernel that holds its weights
        product[0].name = self.writer.names.new(f"{name}/reverse") if direction else name
        self.made += [*product, *cell]
        after = cell[-1].output[0]
        return self._add("Unsqueeze", [after, self._axis(0)])[0], after

    def _cell(self, state: str, steps: Sequence[str], product: str) -> list[Any]:
        """From the product of the state to the next state, which the last node gives."""
        new = self._new
        if self.node.op_type == "RNN":
            (activation,) = _activations(self.node)
            total = new()
            return [
                _node("Add", [product, steps[0]], [total]),
                _node(activation.capitalize(), [total], [new()]),
            ]
        sizes = self.writer.value(
            self.graph, "sizes", np.asarray([2 * self.hidden, self.hidden], np.int64)
        )
        half = self.writer.value(self.graph, "sizes", np.asarray([self.hidden] * 2, np.int64))
        gates, own, both, z_r, z, r = (new() for _ in range(6))
        reset, total, candidate, gap, part, after = (new() for _ in range(6))
        return [
            _node("Split", [product, sizes], [gates, own], axis=-1),
            _node("Add", [gates, steps[0]], [both]),
            _node("Sigmoid", [both], [z_r]),
            _node("Split", [z_r, half], [z, r], axis=-1),
            _node("Mul", [r, own], [reset]),
            _node("Add", [steps[1], reset], [total]),
            _node("Tanh", [total], [candidate]),
            _node("Sub", [state, candidate], [gap]),
            _node("Mul", [z, gap], [part]),
            _node("Add", [candidate, part], [after]),
        ]

    def _output(self, name: str, parts: Sequence[str], axis: int) -> None:
        """Stack the directions along `axis` under the layer's own output name."""
        raised = [self._add("Unsqueeze", [part, self._axis(axis)])[0] for part in parts]
        if len(raised) == 1:
            self.made[-1].output[:] = [name]
        else:
            self._add("Concat", raised, axis=axis)
            self.made[-1].output[:] = [name]


def _node(op: str, inputs: Sequence[str], outputs: Sequence[str], **more: Any) -> Any:
    import onnx

    return onnx.helper.make_node(op, list(inputs), list(outputs), **more)
