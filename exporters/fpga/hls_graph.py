"""A fixed-point specification as the layers of hls4ml, with a precision for every type in it.

hls4ml's defaults wrap, and its front ends change what they read. So its graph is made here, layer
by layer, from the specification: results round and overflow as that says, and accumulators hold
every sum that can occur. Grouped convolutions and means become convolutions with zeros in their
kernels: hls4ml divides at another precision than the reference, and has no groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.base import Refusal
from runtimes.fixed.spec import Format, Layer, Spec
from runtimes.fpga.hls import orders

Row = dict[str, Any]


@dataclass(frozen=True)
class Kernel:
    """Integers of a layer that multiplies: weight [out, in / groups, *kernel], one fraction."""

    weight: Any
    bias: Any
    fraction: int
    bias_fraction: int
    groups: int


def kernel(spec: Spec, layer: Layer) -> Kernel:
    """The weights of `dense`, `conv` and `avg_pool`, the last as a convolution in groups."""
    of_input = spec.formats[layer.inputs[0]].fraction
    if layer.op == "avg_pool":
        channels, number = layer.shape[0], int(layer.attributes["multiplier"])
        weight = np.full((channels, 1, *layer.attributes["kernel"]), number, np.int64)
        fraction = int(layer.attributes["multiplier_fraction"])
        return Kernel(weight, np.zeros(channels, np.int64), fraction, fraction + of_input, channels)
    fractions = spec.fractions(layer)
    widest, shift = int(fractions.max()), fractions.max() - fractions
    weight = spec.weights[layer.name + ".weight"]
    weight = weight << shift.reshape(-1, *(1,) * (weight.ndim - 1))
    bias = spec.weights[layer.name + ".bias"] << shift
    return Kernel(weight, bias, widest - of_input, widest, int(layer.attributes.get("groups", 1)))


def ungrouped(held: Kernel) -> Any:
    """The weight [out, in, *kernel] with zeros between groups."""
    weight, groups = held.weight, held.groups
    if groups == 1:
        return weight
    per, out = weight.shape[1], weight.shape[0] // groups
    whole = np.zeros((weight.shape[0], per * groups, *weight.shape[2:]), np.int64)
    for g in range(groups):
        rows = slice(g * out, (g + 1) * out)
        whole[rows, g * per : (g + 1) * per] = weight[rows]
    return whole


def names(spec: Spec) -> dict[str, str]:
    """hls4ml's name of every tensor: ours need not be identifiers."""
    found = {one.name: f"in{i}" for i, one in enumerate(spec.inputs)}
    rows = enumerate(spec.layers)
    return found | {one.name: f"{one.op.replace('_', '')}{i}" for i, one in rows}


def refused(spec: Spec, stream: bool) -> list[Refusal]:
    """The layers that hls4ml would build wrongly or not at all."""
    found = []
    order = orders(spec)
    for layer in spec.layers:
        padded = any(any(pair) for pair in layer.attributes.get("padding", []))
        if layer.op == "max_pool" and padded and stream:
            found.append(Refusal(layer.name, "padding of a pooling in streams", "use io_parallel"))
        if layer.op == "add" and not np.array_equal(*(order[name] for name in layer.inputs)):
            why = "adds a flattened tensor to one that never had channels"
            found.append(Refusal(layer.name, why, "use backend rtl"))
        widest = max([layer.format.bits, *(spec.formats[n].bits for n in layer.inputs)])
        if widest > 32:
            found.append(Refusal(layer.name, f"has words of {widest} bits", "use fewer bits"))
    return found


def layers(spec: Spec) -> list[Row]:
    """hls4ml's dictionaries of all layers."""
    named, order = names(spec), orders(spec)
    rows: list[Row] = []
    for one in spec.inputs:
        shape = [*one.shape[1:], one.shape[0]] if len(one.shape) > 1 else list(one.shape)
        rows.append({"class_name": "InputLayer", "name": named[one.name], "input_shape": shape})
    for layer in spec.layers:
        row = _ROWS[layer.op](spec, layer, order)
        common = {"name": named[layer.name], "inputs": [named[name] for name in layer.inputs]}
        rows.append({**common, "data_format": "channels_last", **row})
    return rows


def _dense(spec: Spec, layer: Layer, order: Mapping[str, Any]) -> Row:
    held = kernel(spec, layer)
    weight = held.weight[:, order[layer.inputs[0]]].T * 2.0**-held.fraction
    bias = held.bias * 2.0**-held.bias_fraction
    return {
        "class_name": "Dense", "weight_data": weight, "bias_data": bias,
        "n_in": weight.shape[0], "n_out": weight.shape[1],
    }  # fmt: skip


def _conv(spec: Spec, layer: Layer, order: Mapping[str, Any]) -> Row:  # noqa: ARG001
    held = kernel(spec, layer)
    weight = np.moveaxis(ungrouped(held), (0, 1), (-1, -2)) * 2.0**-held.fraction
    row = {
        "class_name": f"Conv{weight.ndim - 2}D", "weight_data": np.ascontiguousarray(weight),
        "bias_data": held.bias * 2.0**-held.bias_fraction, "dilation": 1, "dilation_width": 1,
        "dilation_height": 1, "n_chan": weight.shape[-2], "n_filt": weight.shape[-1],
    }  # fmt: skip
    return {**row, **_places(spec, layer, "filt", weight.shape[:-2])}


def _max_pool(spec: Spec, layer: Layer, order: Mapping[str, Any]) -> Row:  # noqa: ARG001
    size = tuple(layer.attributes["kernel"])
    row = {"class_name": f"MaxPooling{len(size)}D", "n_filt": layer.shape[0]}
    made = {**row, **_places(spec, layer, "pool", size)}
    if len(size) == 1:
        made |= {"n_in": made["in_width"], "n_out": made["out_width"]}
    return made


def _places(spec: Spec, layer: Layer, kind: str, size: tuple[int, ...]) -> Row:
    """Sizes of the picture and the window, strides and padding, by hls4ml's names."""
    before, after = spec.shapes[layer.inputs[0]][1:], layer.shape[1:]
    padding = layer.attributes.get("padding", [(0, 0)] * len(size))
    axes = ("height", "width")[-len(size) :]
    row: Row = {"padding": "valid" if not np.any(padding) else "same"}
    for at, axis in enumerate(axes):
        row |= {
            f"in_{axis}": before[at], f"out_{axis}": after[at], f"{kind}_{axis}": size[at],
            f"stride_{axis}": layer.attributes["stride"][at],
        }  # fmt: skip
        first, last = ("pad_top", "pad_bottom") if axis == "height" else ("pad_left", "pad_right")
        step = layer.attributes["stride"][at]
        # What hls4ml asks for: padding up to where the last window ends, no further.
        used = (after[at] - 1) * step + size[at] - before[at] - padding[at][0]
        row |= {first: int(padding[at][0]), last: max(0, int(used))}
    return row


def _relu(spec: Spec, layer: Layer, order: Mapping[str, Any]) -> Row:  # noqa: ARG001
    return {"class_name": "Activation", "activation": "relu", "n_in": math.prod(layer.shape)}


def _add(spec: Spec, layer: Layer, order: Mapping[str, Any]) -> Row:  # noqa: ARG001
    return {"class_name": "Merge", "op": "add"}


def _flatten(spec: Spec, layer: Layer, order: Mapping[str, Any]) -> Row:  # noqa: ARG001
    return {"class_name": "Reshape", "target_shape": list(layer.shape)}


_ROWS: Mapping[str, Callable[[Spec, Layer, Mapping[str, Any]], Row]] = {
    "dense": _dense,
    "conv": _conv,
    "avg_pool": _conv,
    "max_pool": _max_pool,
    "relu": _relu,
    "add": _add,
    "flatten": _flatten,
}


# ---------------------------------------------------------------------------------- precisions


def type_name(form: Format) -> str:
    """A format as hls4ml's text."""
    kind = "fixed" if form.signed else "ufixed"
    bits = max(1, form.bits)
    return f"{kind}<{bits},{bits - form.fraction},{form.rounding},{form.overflow},0>"


def precisions(spec: Spec) -> dict[str, dict[str, str]]:
    """The type of every result, weight, bias and accumulator, by hls4ml's names of layers."""
    named = names(spec)
    forms = {name: _stored(spec, name) for name in spec.formats}
    found = {named[one.name]: {"result": type_name(forms[one.name])} for one in spec.inputs}
    for layer in spec.layers:
        row = {"result": type_name(forms[layer.name])}
        if layer.op in ("dense", "conv", "avg_pool"):
            row |= _sums(spec, layer)
        elif layer.op == "max_pool":
            row["accum"] = row["result"]
        found[named[layer.name]] = row
    return found


def _stored(spec: Spec, name: str) -> Format:
    """A tensor's format; with a sign where hls4ml pads it with the least value, wrongly without."""
    form = spec.formats[name]
    readers = [layer for layer in spec.layers if name in layer.inputs]
    padded = any(
        one.op == "max_pool" and np.any(one.attributes.get("padding", [])) for one in readers
    )
    source = {layer.name: layer for layer in spec.layers}.get(name)
    if form.signed or not padded or (source is not None and source.op not in ("relu", "max_pool")):
        return form
    return Format(True, form.integer, form.fraction, form.rounding, form.overflow)


def _sums(spec: Spec, layer: Layer) -> dict[str, str]:
    held = kernel(spec, layer)
    form = spec.formats[layer.inputs[0]]
    rows = np.abs(held.weight).reshape(held.weight.shape[0], -1).sum(1)
    most = int((rows * max(-form.low, form.high) + np.abs(held.bias)).max(initial=1))
    return {
        "weight": type_name(least(int(np.abs(held.weight).max(initial=1)), held.fraction)),
        "bias": type_name(least(int(np.abs(held.bias).max(initial=1)), held.bias_fraction)),
        "accum": type_name(least(most, held.bias_fraction)),
    }


def least(largest: int, fraction: int) -> Format:
    """The signed format that holds integers of that size; nothing is cut in it."""
    return Format(True, largest.bit_length() - fraction, fraction, "TRN", "WRAP")
