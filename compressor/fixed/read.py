"""An ONNX graph as the layers that fixed point knows, or everything that stands in its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from exporters._onnx_cleanup import clean
from exporters._onnx_graph import attribute, load_model, normalise
from exporters._onnx_macs import inferred, shapes_of
from exporters._onnx_opset import quantized_ops
from exporters.base import Refusal
from runtimes.types import Artifact

_SUPPORTED = (
    "Gemm, MatMul with a constant, Conv (no dilation, zero padding), Relu, MaxPool, AveragePool, "
    "GlobalAveragePool, Add, Flatten, BatchNormalization behind a layer"
)
_FIXES: Mapping[str, str] = {
    "Softmax": "end the model with its scores: the largest stays the largest",
    "LogSoftmax": "end the model with its scores: the largest stays the largest",
}
_ELSEWHERE = "use target openvino or onnxruntime"
_RELU = "retrain with ReLU"
_ACTIVATIONS = frozenset(
    {"Gelu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Selu", "LeakyRelu", "PRelu",
     "Clip", "Erf", "Swish", "Softplus", "Mish", "Celu"}
)  # fmt: skip


@dataclass
class FloatLayer:
    """One layer before it is quantized; `attributes` as in `runtimes/fixed/spec.py`."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    weight: Any = None
    bias: Any = None


@dataclass
class FloatNet:
    """A model as layers; shapes are without the batch.

    Attributes:
        inputs: (name, shape, dtype).
        outputs: (name, tensor, shape, dtype).
    """

    inputs: list[tuple[str, tuple[int, ...], str]]
    layers: list[FloatLayer]
    outputs: list[tuple[str, str, tuple[int, ...], str]]

    def consumers(self, tensor: str) -> list[FloatLayer]:
        """Layers that read a tensor."""
        return [layer for layer in self.layers if tensor in layer.inputs]

    @property
    def weighted(self) -> list[FloatLayer]:
        """Layers with weights, in order."""
        return [layer for layer in self.layers if layer.weight is not None]


class _Refused(Exception):  # noqa: N818 - becomes a Refusal
    def __init__(self, why: str, fix: str = _ELSEWHERE) -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


def read(artifact: Artifact) -> tuple[FloatNet | None, list[Refusal]]:
    """The layers of an ONNX artifact; None and a refusal for every node that is none of them."""
    given = load_model(artifact.path)
    if quantized_ops(given):
        why = "it is quantized already, with scales that are no powers of two and free zero points"
        fix = "give the float model: quantize_fixed finds its own, symmetric, in powers of two"
        return None, [Refusal("model", why, fix)]
    clean(given)
    model, _ = normalise(given)
    reader = _Reader(artifact, model)
    found = reader.read()
    return (None, found) if found else (reader.net, [])


class _Reader:
    def __init__(self, artifact: Artifact, model: Any) -> None:
        import onnx

        self.graph = model.graph
        self.shapes = shapes_of(inferred(model, artifact.facts.get("dims", {})).graph)
        self.weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        self.named: dict[str, str] = {}  # tensor → the layer (or input) that makes it
        self.net = FloatNet([], [], [])
        self.artifact = artifact

    def read(self) -> list[Refusal]:
        found = [
            Refusal(spec.name, f"an input of {spec.dtype}", "give it floats")
            for spec in self.artifact.inputs
            if np.dtype(spec.dtype).kind != "f"
        ]
        for spec in self.artifact.inputs:
            self.named[spec.name] = spec.name
            self.net.inputs.append((spec.name, self._shape(spec.name, spec.shape), spec.dtype))
        for node in self.graph.node:
            try:
                self._node(node)
            except _Refused as refused:
                name = f"{node.name} ({node.op_type})"
                found.append(Refusal(name, refused.why, refused.fix))
            for name in node.output:
                self.named.setdefault(name, node.name)
        if not found:
            self._outputs()
        return found

    def _outputs(self) -> None:
        for spec in self.artifact.outputs:
            shape = self._shape(spec.name, spec.shape)
            self.net.outputs.append((spec.name, self.named[spec.name], shape, spec.dtype))

    def _shape(self, name: str, spec: Sequence[Any] = ()) -> tuple[int, ...]:
        known = self.shapes.get(name) or [d if isinstance(d, int) else 1 for d in spec]
        return tuple(int(size) for size in known[1:])

    def _node(self, node: Any) -> None:
        reads = {"MatMul": self._matmul, "Gemm": self._gemm, "Conv": self._conv, "Relu": self._relu,
                 "MaxPool": self._max_pool, "AveragePool": self._avg_pool, "Add": self._add,
                 "GlobalAveragePool": self._global_pool, "ReduceMean": self._reduce_mean,
                 "Flatten": self._flatten, "Reshape": self._flatten, "Squeeze": self._flatten,
                 "BatchNormalization": self._norm}  # fmt: skip
        make: Callable[[Any], None] | None = reads.get(node.op_type)
        if make is None or node.domain not in ("", "ai.onnx"):
            fix = _RELU if node.op_type in _ACTIVATIONS else _FIXES.get(node.op_type, "")
            raise _Refused("no fixed-point implementation", fix or f"supported: {_SUPPORTED}")
        make(node)

    def _layer(self, node: Any, op: str, inputs: Sequence[str], **more: Any) -> None:
        shape = self._shape(node.output[0])
        names = tuple(self.named.get(name, name) for name in inputs)
        weight, bias = more.pop("weight", None), more.pop("bias", None)
        self.net.layers.append(FloatLayer(node.name, op, names, shape, more, weight, bias))
        self.named[node.output[0]] = node.name

    def _constant(self, name: str) -> Any:
        if name not in self.weights:
            raise _Refused(
                "two tensors that are both computed are multiplied: only constants become adders",
            )
        return self.weights[name].astype(np.float64)

    def _gemm(self, node: Any) -> None:
        weight = self._constant(node.input[1])
        plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
        if not plain or attribute(node, "transA", 0):
            raise _Refused("Gemm with alpha, beta or a turned input", "write it as a Linear layer")
        weight = weight if attribute(node, "transB", 0) else weight.T
        bias = self._constant(node.input[2]) if len(node.input) > 2 else np.zeros(len(weight))
        self._dense(node, weight, np.broadcast_to(bias, (len(weight),)).copy())

    def _matmul(self, node: Any) -> None:
        weight = self._constant(node.input[1])
        if weight.ndim != 2:
            raise _Refused(f"a product with a constant of {weight.ndim} dimensions")
        self._dense(node, weight.T, np.zeros(weight.shape[1]))

    def _dense(self, node: Any, weight: Any, bias: Any) -> None:
        if len(self._shape(node.output[0])) != 1:
            raise _Refused("a product at every place of a sequence", "write it as a Conv of size 1")
        self._layer(node, "dense", node.input[:1], weight=weight.copy(), bias=bias)

    def _conv(self, node: Any) -> None:
        weight = self._constant(node.input[1])
        rank = weight.ndim - 2
        if rank not in (1, 2):
            raise _Refused(f"a convolution over {rank} dimensions", "use one or two")
        if any(d != 1 for d in attribute(node, "dilations", [1] * rank)):
            raise _Refused("a dilated convolution", "use dilation 1")
        bias = self._constant(node.input[2]) if len(node.input) > 2 else np.zeros(len(weight))
        self._layer(
            node, "conv", node.input[:1], weight=weight.copy(), bias=bias.copy(),
            **self._window(node, rank), groups=int(attribute(node, "group", 1)),
        )  # fmt: skip

    def _window(self, node: Any, rank: int) -> dict[str, Any]:
        auto = attribute(node, "auto_pad", b"NOTSET")
        pads = list(attribute(node, "pads", [0] * 2 * rank))
        if auto not in (b"NOTSET", b"VALID"):
            raise _Refused(f"auto_pad {auto.decode()}", "write the padding as numbers")
        if attribute(node, "ceil_mode", 0):
            raise _Refused("ceil_mode", "use a size that divides, or padding")
        return {
            "stride": [int(s) for s in attribute(node, "strides", [1] * rank)],
            "padding": [[int(pads[i]), int(pads[i + rank])] for i in range(rank)],
        }

    def _relu(self, node: Any) -> None:
        self._layer(node, "relu", node.input[:1])

    def _max_pool(self, node: Any) -> None:
        kernel = [int(k) for k in attribute(node, "kernel_shape", [])]
        if len(node.output) > 1 or any(d != 1 for d in attribute(node, "dilations", [1])):
            raise _Refused("max pooling with indices or dilation", "use a plain one")
        window = self._window(node, len(kernel))
        self._layer(node, "max_pool", node.input[:1], kernel=kernel, **window)

    def _avg_pool(self, node: Any) -> None:
        kernel = [int(k) for k in attribute(node, "kernel_shape", [])]
        window = self._window(node, len(kernel))
        if any(any(pair) for pair in window.pop("padding")):
            raise _Refused("average pooling with padding", "pad in the convolution before it")
        self._layer(node, "avg_pool", node.input[:1], kernel=kernel, **window)

    def _global_pool(self, node: Any) -> None:
        kernel = list(self._shape(node.input[0])[1:])
        self._layer(node, "avg_pool", node.input[:1], kernel=kernel, stride=[1] * len(kernel))

    def _reduce_mean(self, node: Any) -> None:
        axes = attribute(node, "axes", None)
        if axes is None and len(node.input) > 1:
            axes = self.weights.get(node.input[1])
        rank = len(self._shape(node.input[0])) + 1
        whole = sorted(int(a) % rank for a in axes) if axes is not None else []
        if rank < 3 or whole != list(range(2, rank)):
            raise _Refused("a mean over something else than the whole picture")
        self._global_pool(node)

    def _add(self, node: Any) -> None:
        constants = [name for name in node.input if name in self.weights]
        made = [self.named.get(name) for name in node.input if name not in self.weights]
        if constants:
            self._bias(node, self.weights[constants[0]], str(made[0]))
            return
        if len({self._shape(name) for name in node.input}) > 1:
            raise _Refused("a sum of tensors of two shapes", "make the shapes equal")
        self._layer(node, "add", node.input)

    def _bias(self, node: Any, values: Any, maker: str) -> None:
        """A constant added to a layer's result is its bias."""
        layer = next((one for one in self.net.layers if one.name == maker), None)
        if layer is None or layer.op != "dense" or values.size not in (1, len(layer.bias)):
            raise _Refused("a constant added to something else than a MatMul", "use a layer's bias")
        layer.bias = layer.bias + values.reshape(-1)
        self.named[node.output[0]] = layer.name

    def _flatten(self, node: Any) -> None:
        before, after = self._shape(node.input[0]), self._shape(node.output[0])
        if len(after) != 1 or int(np.prod(before)) != after[0]:
            raise _Refused(f"a change of shape from {before} to {after}", "flatten right away")
        self._layer(node, "flatten", node.input[:1])

    def _norm(self, node: Any) -> None:  # noqa: ARG002
        raise _Refused(
            "a batch normalization that follows no layer alone, so that nothing can take it up",
            "put it right behind a convolution or linear layer",
        )
