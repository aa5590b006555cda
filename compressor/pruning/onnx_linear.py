"""Layers of an ONNX graph as matrices: output = weight · row of the input + bias.

What rows are (patches under a kernel, positions, time steps) is shared with the reconstruction of
quantized weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.quantization.reconstruction_onnx import Reader, open_taps, tap_of
from compressor.quantization.reconstruction_taps import Data, Tap, collect
from exporters._onnx_graph import attribute, reads

Floats = NDArray[np.float64]
_TAKEN = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})


@dataclass(frozen=True)
class Linear:
    """A layer whose weight and input rows are known.

    Attributes:
        node: the layer.
        weight: name of its weight, which nothing else reads.
        bias: name of its bias, or None.
        output: the tensor it makes, bias added.
        tap: how to get at the rows of its input.
    """

    node: Any
    weight: str
    bias: str | None
    output: str
    tap: Tap

    @property
    def name(self) -> str:
        """Of the node."""
        return str(self.node.name)


def linears(model: Any) -> list[Linear]:
    """The layers of `model` with float32 weights of their own, in the graph's order."""
    weights = {t.name: t for t in model.graph.initializer}
    count = Counter(name for node in model.graph.node for name in reads(node))
    found = []
    for node in model.graph.node:
        tensor = weights.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in _TAKEN or tensor is None or count[tensor.name] > 1:
            continue
        scaled = attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
        turned = node.op_type == "ConvTranspose" and attribute(node, "group", 1) > 1
        if tensor.data_type != 1 or scaled or turned or attribute(node, "layout", 0) != 0:
            continue
        tap = tap_of(Reader(tensor.name, node, 1, tuple(tensor.dims)))
        if tap is not None:
            found.append(Linear(node, tensor.name, *_bias(model, node, weights, count), tap))
    return found


def _bias(
    model: Any, node: Any, weights: Mapping[str, Any], count: Mapping[str, int]
) -> tuple[str | None, str]:
    """Name of the bias if it is a constant vector of its own, and the tensor that has it."""
    made = node.output[0] or node.output[1]
    names = list(node.input[2:3]) if node.op_type in {"Conv", "ConvTranspose", "Gemm"} else []
    if node.op_type == "MatMul" and count[made] == 1:
        after = [n for n in model.graph.node if made in n.input and n.op_type == "Add"]
        names = [name for n in after for name in n.input if name != made]
        made = after[0].output[0] if _vector(names, weights, node, count) else made
    return (names[0] if _vector(names, weights, node, count) else None), made


def _vector(
    names: Sequence[str], weights: Mapping[str, Any], node: Any, count: Mapping[str, int]
) -> bool:
    if len(names) != 1 or names[0] not in weights or count[names[0]] > 1:
        return False
    blocks, rows, _ = matrix(node, np.empty(weights[node.input[1]].dims, np.float32)).shape
    dims = list(weights[names[0]].dims)
    return bool(dims) and dims[-1] == int(np.prod(dims)) == blocks * rows


def matrix(node: Any, weight: Any) -> Any:
    """A weight as [blocks, rows, columns]; blocks have columns of their own."""
    if node.op_type == "Conv":
        groups = int(attribute(node, "group", 1))
        return weight.reshape(groups, len(weight) // groups, -1)
    if node.op_type == "ConvTranspose":
        return np.moveaxis(weight, 1, 0).reshape(1, weight.shape[1], -1)
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0)):
        return weight.T[None]
    return weight if weight.ndim == 3 else weight[None]


def unmatrix(node: Any, values: Any, shape: Sequence[int]) -> Any:
    """The weight of `shape` whose `matrix` is `values`."""
    if node.op_type == "ConvTranspose":
        moved = values.reshape(shape[1], shape[0], *shape[2:])
        return np.ascontiguousarray(np.moveaxis(moved, 0, 1))
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0)):
        return np.ascontiguousarray(values[0].T)
    return np.ascontiguousarray(values.reshape(shape))


def columns_of(node: Any, shape: Sequence[int], axis: int) -> NDArray[np.int64]:
    """Columns of the matrix for each index of the weight's input axis, [indices, columns each]."""
    places = np.broadcast_to(
        np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape
    )
    first = matrix(node, places)[0, 0]
    return np.stack([np.flatnonzero(first == i) for i in range(shape[axis])])


class Values:
    """Weights of a model by name, as matrices with the bias as their last column."""

    def __init__(self, model: Any) -> None:
        self.tensors = {t.name: t for t in model.graph.initializer}

    def get(self, layer: Linear) -> Floats:
        """[blocks, rows, columns (+ 1 with a bias)]."""
        from onnx import numpy_helper

        values = matrix(layer.node, numpy_helper.to_array(self.tensors[layer.weight]))
        found: Floats = values.astype(np.float64)
        if layer.bias is not None:
            bias = numpy_helper.to_array(self.tensors[layer.bias]).reshape(*found.shape[:2], 1)
            found = np.concatenate([found, bias.astype(np.float64)], axis=2)
        return found

    def arrays(self, layer: Linear, values: Floats) -> dict[str, Any]:
        """Weight and bias in the form of the graph."""
        tensor = self.tensors[layer.weight]
        width = values.shape[2] - (layer.bias is not None)
        weight = unmatrix(layer.node, values[:, :, :width], list(tensor.dims))
        made = {layer.weight: weight.astype(np.float32)}
        if layer.bias is not None:
            shape = list(self.tensors[layer.bias].dims)
            made[layer.bias] = values[:, :, -1].reshape(shape).astype(np.float32)
        return made

    def set(self, layer: Linear, values: Floats) -> None:
        """Write a matrix back."""
        from onnx import numpy_helper

        for name, array in self.arrays(layer, values).items():
            self.tensors[name].CopyFrom(numpy_helper.from_array(array, name))


def augmented(layer: Linear, values: list[Any], limit: int, rng: Any) -> list[Any]:
    """Rows of the layer's input, with a one behind each where there is a bias."""
    rows = layer.tap.rows(values, limit, rng)
    if layer.bias is None:
        return rows
    return [np.concatenate([r, np.ones((len(r), 1), r.dtype)], axis=1) for r in rows]


def grams(
    model: Any, layers: Sequence[Linear], data: Data, rows: int, threads: int, seed: int
) -> Iterator[dict[str, Any]]:
    """XᵀX of the rows of each layer by weight, [blocks, columns, columns], in several passes."""
    taps = [
        replace(
            layer.tap,
            rows=partial(augmented, layer),
            columns=layer.tap.columns + (layer.bias is not None),
            grouped=True,
        )
        for layer in layers
    ]
    open_: Callable[..., Any] = partial(open_taps, model, threads)
    return collect(taps, open_, data, rows=rows, seed=seed)


def add_biases(model: Any) -> set[str]:
    """Give convolutions and Gemms without a bias one of zeros, in place; their names."""
    from onnx import numpy_helper

    weights = {t.name: t for t in model.graph.initializer}
    taken = set(weights) | {n for node in model.graph.node for n in node.output}
    made = set()
    for node in model.graph.node:
        tensor = weights.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in {"Conv", "ConvTranspose", "Gemm"} or tensor is None:
            continue
        if tensor.data_type != 1 or (len(node.input) > 2 and node.input[2]):
            continue
        if node.op_type == "ConvTranspose":
            count = int(tensor.dims[1]) * int(attribute(node, "group", 1))
        else:
            turned = node.op_type == "Gemm" and not attribute(node, "transB", 0)
            count = int(tensor.dims[1 if turned else 0])
        name = f"{node.name}.bias"
        while name in taken:
            name += "_"
        taken.add(name)
        del node.input[2:]
        node.input.append(name)
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(count, np.float32), name))
        made.add(name)
    return made


def drop_zero_biases(model: Any, names: set[str]) -> None:
    """Take back those of `names` that are still zero, in place."""
    from onnx import numpy_helper

    from exporters._onnx_graph import drop

    zero = {
        t.name
        for t in model.graph.initializer
        if t.name in names and not numpy_helper.to_array(t).any()
    }
    for node in model.graph.node:
        if len(node.input) > 2 and node.input[2] in zero:
            del node.input[2:]
    drop(model.graph.initializer, lambda tensor: tensor.name in zero)
