"""A fixed-point specification as a QONNX graph: float32, with a Quant node for every rounding.

Quant rounds ties to even, the reference rounds them up. Between values on a grid half a step added
beforehand decides ties and nothing else, and streamlining absorbs an addition into thresholds. What
holds its exact result needs no node. Means become convolutions by the reference's own multiplier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.base import Refusal
from exporters.fpga.hls_graph import kernel, least
from runtimes.fixed.reference import bounds, fits
from runtimes.fixed.spec import Format, Input, Layer, Spec

if TYPE_CHECKING:
    import onnx

DOMAIN = "qonnx.custom_op.general"
OPSET, IR_VERSION = 13, 10
FLOAT_BITS = 24  # integers that float32 holds


def refused(spec: Spec) -> list[Refusal]:
    """What a file in float32 would get wrong."""
    found = []
    limits = bounds(spec)
    for layer in spec.layers:
        wide = max(-limits[layer.name][0], limits[layer.name][1]).bit_length() + 1
        if wide > FLOAT_BITS:
            why = f"sums of {wide} bits, and QONNX is executed in float32, which holds {FLOAT_BITS}"
            found.append(Refusal(layer.name, why, "use fewer bits"))
        form = layer.format
        if form.overflow == "WRAP" and not _inside(spec, layer, limits[layer.name]):
            found.append(Refusal(layer.name, "wraps; Quant saturates", "set overflow: SAT"))
        if form.bits < (2 if form.signed else 1):
            why = f"has the format {form}; Quant takes one signed bit for -1 and 1"
            found.append(Refusal(layer.name, why, "use more bits"))
    return found


def _inside(spec: Spec, layer: Layer, ends: tuple[int, int]) -> bool:
    return fits(ends, spec.exact_fraction(layer), layer.format)


def model(spec: Spec) -> onnx.ModelProto:
    """The graph, with a free batch; inputs and outputs by the specification's names."""
    from onnx import helper

    made = _Graph(spec)
    for one in spec.inputs:
        made.input(one)
    limits = bounds(spec)
    for layer in spec.layers:
        made.layer(layer, _inside(spec, layer, limits[layer.name]))
    for out in spec.outputs:
        shape = made.constant(np.array([-1, *out.shape], np.int64))
        made.node("Reshape", [made.tensor[out.tensor], shape], out.name)
    graph = helper.make_graph(
        made.nodes, "net", [_value(i.name, i.shape) for i in spec.inputs],
        [_value(o.name, o.shape) for o in spec.outputs], made.constants,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _value(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


class _Graph:
    """Nodes and constants as they come; `tensor` has the name of what holds each of ours."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.tensor: dict[str, str] = {}

    def constant(self, array: Any) -> str:
        from onnx import numpy_helper

        name = f"const{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def floats(self, array: Any) -> str:
        return self.constant(np.asarray(array, np.float32))

    def node(self, kind: str, inputs: list[str], name: str = "", **more: Any) -> str:
        from onnx import helper

        name = name or f"t{len(self.nodes)}"
        domain = DOMAIN if kind == "Quant" else ""
        label = f"{kind}_{len(self.nodes)}"
        made = helper.make_node(kind, inputs, [name], label, domain=domain, **more)
        self.nodes.append(made)
        return name

    def quant(self, value: str, form: Format, rounding: str = "ROUND") -> str:
        held = [self.floats(2.0**-form.fraction), self.floats(0.0), self.floats(form.bits)]
        return self.node("Quant", [value, *held], signed=int(form.signed), narrow=0,
                         rounding_mode=rounding)  # fmt: skip

    def input(self, one: Input) -> None:
        value, form = one.name, one.format
        if form.rounding == "RND":
            value = self.node("Add", [value, self.floats(2.0 ** -(form.fraction + 1))])
        self.tensor[one.name] = self.quant(value, form, "FLOOR")

    def layer(self, layer: Layer, inside: bool) -> None:
        value = self._exact(layer, [self.tensor[name] for name in layer.inputs])
        form, exact = layer.format, self.spec.exact_fraction(layer)
        dropped = exact > form.fraction
        if dropped:
            ties = 2.0 ** -(exact + 1)
            down = 0.0 if form.rounding == "RND" else 2.0 ** -(form.fraction + 1)
            value = self.node("Add", [value, self.floats(ties - down)])
        self.tensor[layer.name] = self.quant(value, form) if dropped or not inside else value

    def _exact(self, layer: Layer, given: list[str]) -> str:
        if layer.op in ("dense", "conv", "avg_pool"):
            return self._linear(layer, given[0])
        if layer.op == "flatten":
            return self.node("Flatten", given, axis=1)
        if layer.op == "max_pool":
            sizes: dict[str, Any] = {
                "kernel_shape": list(layer.attributes["kernel"]),
                **_places(layer),
            }
            return self.node("MaxPool", given, **sizes)
        return self.node({"relu": "Relu", "add": "Add"}[layer.op], given)

    def _linear(self, layer: Layer, value: str) -> str:
        found = kernel(self.spec, layer)
        weight, bias = found.weight, found.bias * 2.0**-found.bias_fraction
        form = least(int(np.abs(weight).max(initial=1)), found.fraction)
        floats = weight * 2.0**-found.fraction
        if layer.op == "dense":
            held = self.quant(self.floats(floats.T), form)
            value = self.node("MatMul", [value, held])
        else:
            held = self.quant(self.floats(floats), form)
            more: dict[str, Any] = {"kernel_shape": list(weight.shape[2:]), "group": found.groups}
            value = self.node("Conv", [value, held], **more, **_places(layer))
        if not bias.any():
            return value
        places = (-1, *(1,) * (weight.ndim - 2))
        return self.node("Add", [value, self.floats(bias.reshape(places))])


def _places(layer: Layer) -> dict[str, Any]:
    padding = layer.attributes.get("padding", [(0, 0)] * (len(layer.shape) - 1))
    pads = [int(pair[0]) for pair in padding] + [int(pair[1]) for pair in padding]
    return {"strides": [int(s) for s in layer.attributes["stride"]], "pads": pads}
