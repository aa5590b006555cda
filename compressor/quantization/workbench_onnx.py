"""Precisions tried on an ONNX graph in one session: weights and switches are its inputs.

The float model is instrumented once. Each weight becomes an input, so that a variant is other
arrays in the same session; behind each tensor that the target would quantize stands
x + switch * (quantized(x) - x), and a switch is an input too. Loading a session for every layer
of a large transformer would take longer than running it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from compressor.quantization.calibration import at_most, batches, calibrate, count
from compressor.quantization.keep import kept
from compressor.quantization.onnx_index import Index, Names
from compressor.quantization.onnx_pass import keep_of, scheme_of
from compressor.quantization.onnx_static import mean_axes, mean_lost, named_nodes, planned
from compressor.quantization.onnx_storage import Weight, find_weights
from compressor.quantization.onnx_storage_write import blockable, dequantized, large_table
from compressor.quantization.onnx_weights import dequantize, quantize_int4, quantize_int8
from compressor.quantization.placement import Placement
from compressor.quantization.qdq import Grid, grid
from compressor.quantization.reconstruction import round_with
from compressor.quantization.sensitivity import (
    BATCH,
    BLOCK,
    BLOCKS,
    FLOAT,
    FOUR,
    INTEGER,
    OPTIONS,
    STORED,
    Group,
    Outputs,
)
from exporters._check import onnx_session, run_onnx
from exporters._onnx_graph import drop, load_model, output_axis, replace
from exporters._onnx_session import with_weights, without_weights
from exporters.base import Env, QuantScheme
from runtimes.types import Artifact

T = TypeVar("T")
LEAST = 256  # smaller weights are not stored in fewer bits


class OnnxBench:
    """The workbench of an `onnx` or `onnxruntime` artifact."""

    def __init__(self, source: Artifact, env: Env, samples: int, method: str = "minmax") -> None:
        self.scheme: QuantScheme = scheme_of(env.context)
        keep = keep_of(env.context, ())
        self.model, self.graph, self.plan = planned(load_model(source.path), self.scheme, keep)
        stay = set(kept(named_nodes(self.model), keep))
        self.weights = {
            w.tensor.name: w
            for w in find_weights(self.graph, 1, stay)
            if w.tensor.name in self.graph.weights and w.dequantize is None
        }
        self._in_blocks = {t for t, w in self.weights.items() if self._blockable(w)}
        self._group_of = {t: self._layers(w)[0] for t, w in self.weights.items()}
        self._members = members(self._group_of, self.weights)
        groups = [self._group(name, found) for name, found in self._members.items()]
        self.groups = tuple(g for g in groups if len(g.options) > 1)
        data = env.data.get("selection", env.data["calibration"])
        self._feeds = list(batches(data, source.inputs, samples, most=BATCH))
        self._session: Any = None
        self._source, self._env, self._method = source, env, method
        self._switches: dict[str, frozenset[str]] = {}
        self._bias: dict[str, tuple[str, Any]] = {}
        self._means: Mapping[str, Any] = {}

    def _blockable(self, weight: Weight) -> bool:
        """Not an LSTM's: with one scale a channel it runs in dynamic INT8 where the engine can."""
        recurrent = weight.node.op_type == "LSTM"
        return blockable(weight, BLOCK) and not recurrent and not large_table(weight, self.graph)

    def _layers(self, weight: Weight) -> tuple[str, ...]:
        return tuple(n.name for n in self.graph.consumers[weight.tensor.name])

    def _group(self, name: str, weights: list[Weight]) -> Group:
        layers = tuple(dict.fromkeys(n for w in weights for n in self._layers(w)))
        elements = sum(int(w.values.size) for w in weights)
        integer = all(n in self.plan.weights for n in layers)
        blocks = any(w.tensor.name in self._in_blocks for w in weights)
        options = options_of(elements, integer=integer, blocks=blocks)
        if self.scheme.explicit:  # what is stored in fewer bits would be written out
            options = tuple(o for o in options if o in {FLOAT, "int8"})
        return Group(name, weights[0].node.op_type, layers, elements, options)

    @property
    def samples(self) -> int:
        """How many the outputs are of."""
        return count(self._feeds)

    def fewer(self, samples: int) -> int:
        """Search on about so many samples from here on; how many batches that leaves."""
        self._feeds = at_most(self._feeds, samples)
        return len(self._feeds)

    def size_bytes(self, group: Group, option: str) -> int:
        """Stored bytes of the group's weights in that option, scales included."""
        return sum(self._bytes(weight, option) for weight in self._members[group.name])

    def _bytes(self, weight: Weight, option: str) -> int:
        elements, channels = int(weight.values.size), int(weight.values.shape[weight.axis])
        if self.scheme.explicit and option == FLOAT:
            option = "half"  # as the rest of its list writes it
        if option == BLOCKS and weight.tensor.name in self._in_blocks:
            return stored_bytes(elements, 2 * elements // BLOCK, option)  # scales in half precision
        return stored_bytes(elements, 4 * channels, option)

    def outputs(self, assign: Mapping[str, str]) -> Outputs:
        """Outputs on the search samples with groups (by name) in these options, the rest float."""
        if self._session is None:
            self._instrument()
        integer = {g for g, option in assign.items() if option in INTEGER}
        values: dict[str, Any] = {}
        for tensor, weight in self.weights.items():
            option = assign.get(self._group_of[tensor], FLOAT)
            values[tensor] = self._values(weight, option)
            values.update(self._biases(weight, values[tensor], option))
        for name, needs in self._switches.items():
            values[name] = np.asarray(float(bool(needs) and needs <= integer), np.float32)
        return [run_onnx(self._session, {**feeds, **values}) for feeds in self._feeds]

    def _biases(self, weight: Weight, values: Any, option: str) -> dict[str, Any]:
        """Biases of the layers that read a weight, corrected for its rounding as the steps do."""
        found = {}
        for node in self.graph.consumers[weight.tensor.name]:
            if node.name not in self._bias:
                continue
            name, bias = self._bias[node.name]
            found[name] = bias
            mean = self._means.get(node.input[0])
            if mean is not None and option != FLOAT:
                lost = mean_lost(node, weight.values - values, np.asarray(mean))
                found[name] = (bias + lost).astype(np.float32)
        return found

    def _values(self, weight: Weight, option: str) -> Any:
        if option == BLOCKS and weight.tensor.name in self._in_blocks:
            return dequantized(round_with(weight.values, weight.axis, None, BLOCK), weight.axis)
        if option in FOUR:
            return dequantize(*quantize_int4(weight.values, weight.axis), weight.axis)
        if option in {"w8", "int8"}:
            limit = self.scheme.weight_limit if option == "int8" else 127
            return dequantize(*quantize_int8(weight.values, weight.axis, limit), weight.axis)
        if option == "half":
            return weight.values.astype(np.float16).astype(np.float32)
        return weight.values

    def _instrument(self) -> None:
        data, source = self._env.data["calibration"], self._source
        roots = list(dict.fromkeys(self.plan.roots.values()))
        axes = mean_axes(self.graph, dict.fromkeys(self._correctable()))
        found = calibrate(
            self.model, roots, axes, lambda: batches(data, source.inputs, 300), method=self._method
        )
        self._means = found.means
        grids = {root: grid(found.ranges[root], self.scheme) for root in roots}
        model = instrumented(self.model, list(self.weights), grids)
        self._bias = biases_as_inputs(model, set(self._correctable()))
        self._switches = {
            switch_of(root): needs
            for root, needs in integer_needs(self.graph, self.plan, self._group_of).items()
        }
        self._session = onnx_session(
            model.SerializeToString(), self._env.context.threads, in_order=True
        )

    def _correctable(self) -> list[str]:
        """Convolutions and Gemms whose weight is a group's: their bias can take a correction."""
        return [
            node.name
            for tensor in self.weights
            for node in self.graph.consumers[tensor]
            if node.op_type in {"Conv", "Gemm"} and node.input[1] == tensor
        ]


def options_of(elements: int, *, integer: bool, blocks: bool = False) -> tuple[str, ...]:
    """What a group may become; a small weight is worth no scales of its own but under INT8."""
    if elements < LEAST:
        return (FLOAT, "int8") if integer else (FLOAT,)
    return tuple(o for o in (OPTIONS if integer else STORED) if blocks or o != BLOCKS)


def members(group_of: Mapping[str, str], weights: Mapping[str, T]) -> dict[str, list[T]]:
    """Group → its weights; a recurrent layer has several."""
    found: dict[str, list[T]] = {}
    for key, weight in weights.items():
        found.setdefault(group_of[key], []).append(weight)
    return found


def stored_bytes(elements: int, scales: int, option: str) -> int:
    """Bytes of a weight of `elements` values with `scales` bytes of scales in that option."""
    if option in FOUR:
        return (elements + 1) // 2 + scales
    return {FLOAT: 4 * elements, "half": 2 * elements}.get(option, elements + scales)


def switch_of(root: str) -> str:
    """Name of the input that turns the quantization of a tensor on."""
    return root + "//on"


def instrumented(model: Any, weights: list[str], grids: Mapping[str, Grid]) -> Any:
    """A copy of `model` with its weights and a switch per tensor in `grids` as inputs."""
    import onnx

    floats = onnx.TensorProto.FLOAT
    copy, chosen = without_weights(model), set(weights)
    with_weights(copy, model, skip=chosen)
    graph, names = copy.graph, Names(copy.graph)
    drop(graph.initializer, lambda tensor: tensor.name in chosen)
    for tensor in model.graph.initializer:
        if tensor.name in chosen:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, floats, tensor.dims))
    mixes: dict[str, list[Any]] = {}
    renamed: dict[str, str] = {}
    for root, at in grids.items():
        graph.input.append(onnx.helper.make_tensor_value_info(switch_of(root), floats, ()))
        renamed[root] = names.new("x")
        mixes[root] = _mix(graph, names, root, renamed[root], at)
    outputs = {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output}
    nodes = [n for root in grids if root not in made for n in mixes[root]]
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        nodes.append(node)
        for name in node.output:
            nodes += mixes.get(name, [])
    replace(graph.node, nodes)
    for name in outputs & set(renamed):
        _swap_output(graph, name, renamed[name])
    return copy


def biases_as_inputs(model: Any, layers: set[str]) -> dict[str, tuple[str, Any]]:
    """Make the bias of each of `layers` an input, in place; layer → its input and present values.

    A layer whose bias is computed, or no row of constants, is left out.
    """
    import onnx

    graph, names = model.graph, Names(model.graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = {value.name: value for value in graph.input}
    found: dict[str, tuple[str, Any]] = {}
    for node in graph.node:
        if node.name not in layers or node.input[1] not in weights:
            continue
        old = node.input[2] if len(node.input) > 2 else ""
        if old and (old not in constants or len(constants[old].dims) != 1):
            continue
        dims = [d.dim_value for d in weights[node.input[1]].type.tensor_type.shape.dim]
        size = dims[output_axis(node, len(dims))]
        values = onnx.numpy_helper.to_array(constants[old]) if old else np.zeros(size, np.float32)
        name = names.new("b")
        graph.input.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, values.shape)
        )
        node.input[:] = [*node.input[:2], name]
        found[node.name] = (name, values)
    return found


def _mix(graph: Any, names: Names, root: str, out: str, at: Grid) -> list[Any]:
    import onnx

    scale, zero = names.new("s"), names.new("z")
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(at.scale), scale))
    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(at.zero), zero))
    integers, floats, gap, part = (names.new("m") for _ in range(4))
    make = onnx.helper.make_node
    return [
        make("QuantizeLinear", [root, scale, zero], [integers]),
        make("DequantizeLinear", [integers, scale, zero], [floats]),
        make("Sub", [floats, root], [gap]),
        make("Mul", [gap, switch_of(root)], [part]),
        make("Add", [root, part], [out]),
    ]


def _swap_output(graph: Any, name: str, mixed: str) -> None:
    """Let the graph's output `name` be the mixed tensor, under its own name."""
    inner = name + "//float"
    for node in graph.node:
        node.input[:] = [inner if n == name else n for n in node.input]
        node.output[:] = [inner if n == name else name if n == mixed else n for n in node.output]
        node.input[:] = [name if n == mixed else n for n in node.input]


def integer_needs(
    graph: Index, plan: Placement, group_of: Mapping[str, str]
) -> dict[str, frozenset[str]]:
    """Root → the groups that must all be integer for its pair to be there.

    A tensor that an integer layer with weights reads or makes needs that layer's group; what lies
    between (additions, pools, activations) needs the groups of all layers it is computed from.
    """
    weighted = {
        n.name: group_of[plan.weights[n.name]]
        for n in graph.graph.node
        if n.name in plan.weights and plan.weights[n.name] in group_of
    }
    needs: dict[str, frozenset[str]] = {}
    above: dict[str, frozenset[str]] = {}
    for node in graph.graph.node:
        if node.name in weighted:
            made = frozenset({weighted[node.name]})
        else:
            reads = (above.get(name, frozenset()) for name in node.input)
            made = frozenset().union(*reads)
        for name in node.output:
            above[name] = made
            if plan.roots.get(name) == name and name in plan.made_here:
                needs[name] = made
    for node in graph.graph.node:
        root = plan.roots.get(node.input[0]) if node.name in weighted else None
        if root is not None and root not in needs:
            needs[root] = frozenset({weighted[node.name]})
    return needs
