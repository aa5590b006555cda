"""Weights of an ONNX graph in 8 or 4 bits, in the form engines fold (see `quantize_weights`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.quantization.calibration import batches, calibrate
from compressor.quantization.keep import kept
from compressor.quantization.onnx_index import Index, Names, index, take_over_names
from compressor.quantization.onnx_pass import require_smaller
from compressor.quantization.onnx_static import correct_biases, mean_axes, named_nodes
from compressor.quantization.onnx_weights import (
    broadcast,
    dequantize,
    int4_tensor,
    noise_share,
    output_axis,
    quantize_int4,
    quantize_int8,
)
from compressor.quantization.storage import Tensor, keep_in_8_bits
from exporters._drop_in import require_drop_in
from exporters._onnx_graph import (
    OPSET,
    drop_dead_weights,
    load_model,
    opset_of,
    replace,
    save_model,
)
from exporters._onnx_opset import upgrade_opset
from exporters.base import Context, Env
from runtimes.errors import Refusal
from runtimes.types import Artifact

# Which input of an op is a weight.
_PORTS = {
    "Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (1,), "Gather": (0,),
    "GRU": (1, 2), "LSTM": (1, 2), "RNN": (1, 2),
}  # fmt: skip


@dataclass
class Weight:
    """A stored weight: its tensor, the node that computes with it, its values.

    `dequantize` is the DequantizeLinear that reads it, where it is an INT8 one.
    """

    tensor: Any
    node: Any
    values: Any
    axis: int
    dequantize: Any | None = None


def find_weights(graph: Index, least: int, kept_nodes: set[str]) -> list[Weight]:
    """Float weights and INT8 weights of at least `least` values, once each, in order."""
    found: dict[str, Weight] = {}
    for node in graph.graph.node:
        for port in _PORTS.get(node.op_type, ()) if node.name not in kept_nodes else ():
            made = _weight(graph, node, port)
            if made is not None and made.values.size >= least and made.values.ndim > 1:
                found.setdefault(made.tensor.name, made)
    return list(found.values())


def _weight(graph: Index, node: Any, port: int) -> Weight | None:
    import onnx

    name = node.input[port]
    tensor, maker = graph.weights.get(name), graph.producers.get(name)
    if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT:
        if not all(_reads_as_weight(other, name) for other in graph.consumers[name]):
            return None
        values = onnx.numpy_helper.to_array(tensor)
        return Weight(tensor, node, values, output_axis(node, values.ndim))
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    tensor = graph.weights.get(maker.input[0])
    if tensor is None or tensor.data_type != onnx.TensorProto.INT8:
        return None
    integers = onnx.numpy_helper.to_array(tensor)
    scale = onnx.numpy_helper.to_array(graph.weights[maker.input[1]])
    axis = output_axis(node, integers.ndim)
    return Weight(tensor, node, dequantize(integers, scale, axis), axis, maker)


def _reads_as_weight(node: Any, name: str) -> bool:
    ports = _PORTS.get(node.op_type, ())
    return (
        all(i in ports for i, read in enumerate(node.input) if read == name) and name in node.input
    )


def refusals(source: Artifact, options: Any, context: Context) -> list[Refusal]:
    """Reasons why an ONNX artifact's weights cannot be stored in `options.bits`."""
    model = load_model(source.path)
    weights = _chosen(model, options, context)
    if not weights:
        kind = "float weight" if options.bits == 8 else "float or INT8 weight"
        why = f"no {kind} of {options.least} values or more outside what `keep` names"
        return [Refusal("model", why, "ship it as it is")]
    if options.bits == 4 and opset_of(upgrade_opset(model)[0]) < OPSET:
        why = (
            f"operator set {opset_of(model)} has no INT4 and the model cannot be raised to {OPSET}"
        )
        return [Refusal("model", why, f"export with operator set {OPSET}, or use bits: 8")]
    return []


def _chosen(model: Any, options: Any, context: Context) -> list[Weight]:
    graph = index(model)
    stay = set(kept(named_nodes(model), context.keep))
    found = find_weights(graph, options.least, stay)
    return [w for w in found if options.bits == 4 or w.dequantize is None]


def run(source: Artifact, options: Any, env: Env) -> Artifact:
    """Store the weights, correct biases where data is given, and write the model."""
    model = load_model(source.path)
    if options.bits == 4:
        model, _ = upgrade_opset(model)
    store = _Store(model, _chosen(model, options, env.context), options)
    data = env.data.get("calibration")
    if data is not None and options.bias_correction:
        feeds = lambda: batches(data, source.inputs, options.samples)  # noqa: E731
        store.correct(
            lambda axes: calibrate(model, [], axes, feeds, threads=env.context.threads).means
        )
    store.write()
    path = env.work / source.entry
    save_model(model, path)
    facts = {
        **source.facts,
        "storage": store.facts(),
        "notes": [*source.facts.get("notes", []), store.note()],
    }
    artifact = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )
    require_smaller(source, artifact)
    return require_drop_in(source, artifact)


@dataclass(frozen=True)
class _Stored:
    integers: Any
    scale: Any
    bits: int


class _Store:
    """The rounding of every chosen weight, and how it is written into the graph."""

    def __init__(self, model: Any, weights: list[Weight], options: Any) -> None:
        self.model, self.weights = model, weights
        self.graph, self.names = index(model), Names(model.graph)
        self.replaced: dict[str, str] = {}
        made = {w.tensor.name: self._round(w, options.bits) for w in weights}
        stay = set()
        if options.bits == 4:
            noise = [Tensor(w.tensor.name, w.values.size, self._noise(w, made)) for w in weights]
            stay = keep_in_8_bits(noise, options.share)
        self.made = {
            w.tensor.name: self._round(w, 8) if w.tensor.name in stay else made[w.tensor.name]
            for w in weights
        }

    def _round(self, weight: Weight, bits: int) -> _Stored:
        rounding = quantize_int4 if bits == 4 else quantize_int8
        return _Stored(*rounding(weight.values, weight.axis), bits)

    def _noise(self, weight: Weight, made: dict[str, _Stored]) -> float:
        stored = made[weight.tensor.name]
        return noise_share(weight.values, stored.integers, stored.scale, weight.axis)

    def correct(self, means_of: Any) -> None:
        """Correct the float biases of convolutions (and float Gemms) for the new rounding."""
        errors = {}
        for weight in self.weights:
            stored = self.made[weight.tensor.name]
            values = dequantize(stored.integers, stored.scale, weight.axis)
            for node in self.graph.graph.node:
                if node.name and self._reads(node, weight):
                    errors[node.name] = weight.values - values
        axes = mean_axes(self.graph, errors)
        if axes:
            correct_biases(self.model, self.graph, errors, means_of(axes))
            self.names = Names(self.model.graph)

    def _reads(self, node: Any, weight: Weight) -> bool:
        name = weight.tensor.name if weight.dequantize is None else weight.dequantize.output[0]
        return node.op_type in {"Conv", "Gemm"} and node.input[1] == name

    def write(self) -> None:
        """Put the integers into the graph and drop what they replace."""
        before: dict[str, list[Any]] = {}
        for weight in self.weights:
            stored = self.made[weight.tensor.name]
            if weight.dequantize is None:
                before.setdefault(weight.node.name, []).extend(self._float_form(weight, stored))
            elif stored.bits == 4:
                before.setdefault(weight.dequantize.output[0], []).extend(
                    self._integer_form(weight, stored)
                )
        nodes = []
        for node in self.model.graph.node:
            key = node.output[0] if node.op_type == "DequantizeLinear" else node.name
            nodes += [*before.get(key, ()), node]
        replace(self.model.graph.node, nodes)
        drop_dead_weights(self.model.graph)
        take_over_names(self.model.graph, self.replaced)

    def _tensor(self, weight: Weight, stored: _Stored) -> str:
        """Name of a new initializer with the integers."""
        import onnx

        name = self.names.new(weight.tensor.name)
        self.replaced[name] = weight.tensor.name
        made = (
            int4_tensor(stored.integers, name)
            if stored.bits == 4
            else onnx.numpy_helper.from_array(stored.integers, name)
        )
        self.model.graph.initializer.append(made)
        return name

    def _array(self, wanted: str, array: Any) -> str:
        import onnx

        name = self.names.new(wanted)
        self.model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def _float_form(self, weight: Weight, stored: _Stored) -> list[Any]:
        import onnx

        integers, floats, out = (
            self._tensor(weight, stored),
            self.names.new("w"),
            self.names.new("w"),
        )
        scale = self._array("ws", broadcast(stored.scale, weight.axis, weight.values.ndim))
        for node in self.graph.consumers[weight.tensor.name]:
            node.input[:] = [out if name == weight.tensor.name else name for name in node.input]
        return [
            onnx.helper.make_node("Cast", [integers], [floats], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [floats, scale], [out]),
        ]

    def _integer_form(self, weight: Weight, stored: _Stored) -> list[Any]:
        import onnx

        cast, node = self.names.new("w"), weight.dequantize
        assert node is not None
        integers = self._tensor(weight, stored)
        self._rescale_biases(weight, stored.scale)
        node.input[0], node.input[1] = cast, self._array("ws", stored.scale)
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
            bias.input[0] = self._array("b", integers)
            bias.input[1] = self._array("bs", now)

    def facts(self) -> dict[str, Any]:
        """Bits by weight, and the share of values stored in 4."""
        four = [w for w in self.weights if self.made[w.tensor.name].bits == 4]
        total = sum(w.values.size for w in self.weights)
        return {
            "bits": {w.tensor.name: self.made[w.tensor.name].bits for w in self.weights},
            "share_4_bits": round(sum(w.values.size for w in four) / total, 4),
        }

    def note(self) -> str:
        """One sentence for the user."""
        return storage_note(
            {w.tensor.name: self.made[w.tensor.name].bits for w in self.weights},
            self.facts()["share_4_bits"],
        )


def storage_note(bits: dict[str, int], share: float) -> str:
    """What was stored how, in one sentence."""
    eight = [name for name, width in bits.items() if width == 8]
    if len(eight) == len(bits):
        return f"{len(bits)} weights are stored in 8 bits"
    text = f"{share:.1%} of the weights are stored in 4 bits"
    if not eight:
        return text
    shown = ", ".join(eight[:4]) + (f" and {len(eight) - 4} more" if len(eight) > 4 else "")
    return f"{text}; 8 bits where rounding to 4 costs most: {shown}"
