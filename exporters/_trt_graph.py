"""An ONNX graph as the TensorRT exporter looks at it: makers, readers, constants and Q/DQ pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from exporters._onnx_graph import attribute, opset_of, reads

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
MULTIPLYING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# What a convolution takes along where no pair stands between the two.
ACTIVATIONS = frozenset({"Relu", "Clip", "Sigmoid", "LeakyRelu", "HardSwish", "Tanh", "Elu"})
Array = np.ndarray[Any, Any]


class View:
    """One model's main graph, looked up by name; valid until the graph is changed."""

    def __init__(self, model: Any) -> None:
        self.graph, self.opset = model.graph, opset_of(model)
        self.weights = {tensor.name: tensor for tensor in self.graph.initializer}
        self.outputs = {value.name for value in self.graph.output}
        self.makers: dict[str, Any] = {}
        self.readers: dict[str, list[Any]] = {}
        for node in self.graph.node:
            self.makers.update({name: node for name in node.output if name})
            for name in dict.fromkeys(reads(node)):
                self.readers.setdefault(name, []).append(node)

    def nodes(self, *ops: str) -> list[Any]:
        """Nodes of these operators, in order."""
        return [node for node in self.graph.node if node.op_type in ops]

    def maker(self, name: str, *ops: str) -> Any | None:
        """The node that makes `name`, if it is one of these operators."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type in ops else None

    def only_reader(self, name: str) -> Any | None:
        """The one node that reads `name`, if nothing else does and it is no output."""
        found = self.readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self.outputs else None

    def array(self, name: str) -> Array | None:
        """The values of a constant; None for what is computed."""
        import onnx

        tensor = self.weights.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def scale(self, node: Any) -> Array | None:
        """Scales of a Q or DQ node, where they are constant."""
        return self.array(node.input[1])

    def zero(self, node: Any) -> Array | None:
        """Zero points of a Q or DQ node; one 0 of its type where it has none, None if computed."""
        if len(node.input) > 2 and node.input[2]:
            return self.array(node.input[2])
        return np.zeros((), _dtype(self.kind(node)))

    def kind(self, node: Any) -> str:
        """Name of the integer (or 8-bit float) type of a Q or DQ node."""
        import onnx

        if len(node.input) > 2 and node.input[2] in self.weights:
            return _name(self.weights[node.input[2]].data_type)
        if node.op_type == QUANTIZE:
            asked = attribute(node, "output_dtype", 0)
            return _name(asked) if asked else "uint8"
        if node.input[0] in self.weights:
            return _name(self.weights[node.input[0]].data_type)
        maker = self.makers.get(node.input[0])
        if maker is not None and maker.op_type == QUANTIZE:
            return self.kind(maker)
        if maker is not None and maker.op_type == "Cast":
            return _name(attribute(maker, "to", onnx.TensorProto.UNDEFINED))
        return ""

    def quantizer(self, node: Any) -> Any | None:
        """The QuantizeLinear that a DequantizeLinear reads, if it is half of a pair."""
        return self.maker(node.input[0], QUANTIZE)

    def is_weight(self, node: Any) -> bool:
        """Does this DequantizeLinear read a constant, be it through a QuantizeLinear or a Cast?"""
        name = node.input[0]
        maker = self.maker(name, QUANTIZE, "Cast")
        return name in self.weights or (maker is not None and maker.input[0] in self.weights)

    def pair(self, name: str) -> Any | None:
        """The DequantizeLinear of an activation that makes `name`, if one does."""
        node = self.maker(name, DEQUANTIZE)
        return None if node is None or self.is_weight(node) else node

    def weight(self, name: str) -> Any | None:
        """The DequantizeLinear of a constant that makes `name`, if one does."""
        node = self.maker(name, DEQUANTIZE)
        return node if node is not None and self.is_weight(node) else None


def _name(number: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(number)).lower() if number else ""


def _dtype(kind: str) -> Any:
    return np.dtype(kind if kind in {"int8", "uint8", "int16", "uint16", "int32"} else "int8")
