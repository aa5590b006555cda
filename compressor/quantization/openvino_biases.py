"""Bias correction in an OpenVINO model whose weights lose bits (as `onnx_static` does in ONNX)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from compressor.quantization.openvino_ir import compiled_f32
from exporters._memory import release
from runtimes.base import Feeds

_TYPES = frozenset({"Convolution", "GroupConvolution", "MatMul"})


def mean_inputs(model: Any, layers: list[str], feeds: Iterator[Feeds]) -> dict[str, Any]:
    """Mean of each input channel of the named layers over all feeds; `model` is left as it is."""
    import openvino as ov
    from openvino import opset13

    copy, outputs = model.clone(), []
    for op in copy.get_ordered_ops():
        if op.get_friendly_name() in layers:
            source = op.input_value(0)
            axes = _other_axes(op, source.get_partial_shape().rank.get_length())
            mean = opset13.reduce_mean(source, opset13.constant(np.array(axes, np.int64)), False)
            outputs.append((op.get_friendly_name(), mean.output(0)))
    means = ov.Model([mean for _, mean in outputs], copy.get_sinks(), copy.get_parameters())
    release()
    compiled = compiled_f32(means)
    names = [name for name, _ in outputs]
    totals: dict[str, Any] = {}
    done = 0
    for batch in feeds:
        count = len(next(iter(batch.values())))
        for name, value in zip(names, compiled(dict(batch)).to_tuple(), strict=True):
            totals[name] = totals.get(name, 0.0) + count * value.astype(np.float64)
        done += count
    return {name: total / done for name, total in totals.items()}


def _other_axes(op: Any, rank: int) -> list[int]:
    channel = rank - 1 if op.get_type_name() == "MatMul" else 1
    return [axis for axis in range(rank) if axis != channel]


def correctable(top: Any) -> list[Any]:
    """Layers that read the weight `top` and whose bias can take a correction."""
    found, waiting = [], [port.get_node() for port in top.output(0).get_target_inputs()]
    while waiting:
        node = waiting.pop(0)
        if node.get_type_name() in _TYPES and not _transposed_input(node):
            found.append(node)
        elif node.get_type_name() == "Reshape":
            waiting += [port.get_node() for port in node.output(0).get_target_inputs()]
    return found


def _transposed_input(node: Any) -> bool:
    return node.get_type_name() == "MatMul" and bool(node.get_attributes()["transpose_a"])


def lost_mean(layer: Any, error: Any, mean: Any) -> Any:
    """What the error of a layer's weight takes from the mean of its output channels."""
    if layer.get_type_name() == "MatMul":
        return (error if layer.get_attributes()["transpose_b"] else error.T) @ mean
    if layer.get_type_name() == "Convolution":
        return error.reshape(*error.shape[:2], -1).sum(axis=2) @ mean
    groups = layer.input_value(1).get_partial_shape()[0].get_length()
    taps = error.reshape(groups, -1, len(mean) // groups, *error.shape[-2:]).sum(axis=(3, 4))
    return np.einsum("goi,gi->go", taps, mean.reshape(groups, -1)).reshape(-1)


def add_to_outputs(layers: Mapping[Any, Any]) -> None:
    """Add a value per output channel behind each layer: into its bias, or as a new one.

    A new one costs time, so a layer without goes by the pointwise convolution behind it, if any.
    """
    from openvino import opset13

    for layer, values in _passed_on(layers):
        rank = layer.get_output_partial_shape(0).rank.get_length()
        shape = [1] * rank
        shape[-1 if layer.get_type_name() == "MatMul" else 1] = -1
        extra = values.reshape(shape).astype(np.float32)
        readers = list(layer.output(0).get_target_inputs())
        bias = _bias(readers)
        if bias is None:
            made = opset13.add(layer, opset13.constant(extra))
            for reader in readers:
                reader.replace_source_output(made.output(0))
            continue
        add, port = bias
        old = add.input_value(port).get_node().get_data()
        made = opset13.constant((old + extra).astype(np.float32))
        add.input(port).replace_source_output(made.output(0))


def _passed_on(layers: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """`layers`, those without a bias replaced by the pointwise convolution that alone reads them.

    What is added before it comes out as its weight times that, exactly: it has no borders.
    """
    found = {layer.get_friendly_name(): (layer, values) for layer, values in layers.items()}
    for layer in layers:
        behind = _pointwise(layer)
        if behind is None:
            continue
        name, (_, moved) = behind.get_friendly_name(), found.pop(layer.get_friendly_name())
        weight = behind.input_value(1).get_node().get_data()
        more = weight.reshape(weight.shape[:2]).astype(np.float64) @ moved
        found[name] = (behind, more + (found[name][1] if name in found else 0.0))
    return list(found.values())


def _pointwise(layer: Any) -> Any | None:
    """The convolution of one tap with float weights that is all that reads `layer`."""
    readers = list(layer.output(0).get_target_inputs())
    behind = readers[0].get_node() if len(readers) == 1 else None
    if behind is None or behind.get_type_name() != "Convolution" or readers[0].get_index() != 0:
        return None
    weight, given = behind.input_value(1).get_node(), behind.get_attributes()
    one_tap = set(list(behind.input_value(1).get_shape())[2:]) == {1}
    borders = [*given["pads_begin"], *given["pads_end"]]
    plain = weight.get_type_name() == "Constant" and one_tap and not any(borders)
    return behind if plain and given["auto_pad"] in ("explicit", "valid") else None


def _bias(readers: list[Any]) -> tuple[Any, int] | None:
    """The one `Add` with a constant that reads a layer, and the constant's port."""
    if len(readers) != 1 or readers[0].get_node().get_type_name() != "Add":
        return None
    add, port = readers[0].get_node(), 1 - readers[0].get_index()
    return (add, port) if add.input_value(port).get_node().get_type_name() == "Constant" else None
