"""The adder graph of a fixed-point model, solved by da4ml: multiplications by constants as adders.

da4ml (LGPL-3, an optional tool of the build) factors constant matrices into few additions (Sun et
al., "da4ml", ACM TRETS 2025) and cuts the graph into stages. What it finds is plain data; Verilog
is written from that by `verilog.py`, so none of its files end up in an artifact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtimes.fixed.reference import bounds, fits
from runtimes.fixed.spec import Format, Layer, Spec

HARDEST = 2  # da4ml's search may add so many adders' delay to save adders ("hard_dc")


@dataclass(frozen=True)
class Graph:
    """A solved model.

    Attributes:
        comb: da4ml's `CombLogic` of all of it.
        stages: the same cut into stages, da4ml's `CombLogic` each.
        cost: da4ml's estimate of six-input LUTs; synthesis came within 7 % of it.
    """

    comb: Any
    stages: tuple[Any, ...]

    @property
    def cost(self) -> float:
        """Estimated LUTs."""
        return float(self.comb.cost)


def solve(spec: Spec, cutoff: float) -> Graph:
    """The model as adders, cut where `cutoff` adders' delays have passed (0: not at all)."""
    from da4ml.trace import to_pipeline

    comb = trace(spec)
    stages = to_pipeline(comb, cutoff, verbose=False).solutions if cutoff > 0 else (comb,)
    return Graph(comb, tuple(stages))


def cost(spec: Spec) -> float:
    """da4ml's estimate of a model's LUTs, without synthesis."""
    return float(trace(spec).cost)


def trace(spec: Spec) -> Any:
    """da4ml's `CombLogic` of a model; inputs and outputs one after the other, flat."""
    from da4ml.trace import FixedVariableArrayInput, HWConfig, comb_trace

    tensors: dict[str, Any] = {}
    given = []
    limits = bounds(spec)
    for one in spec.inputs:
        options = {"hard_dc": HARDEST}
        array = FixedVariableArrayInput(one.shape, HWConfig(1, -1, -1), solver_options=options)
        form = one.format
        tensors[one.name] = array.quantize(int(form.signed), form.integer, form.fraction)
        given.append(array)
    for layer in spec.layers:
        exact = _OPS[layer.op](spec, layer, tensors)
        inside = fits(limits[layer.name], spec.exact_fraction(layer), layer.format)
        tensors[layer.name] = _into(exact, layer.format, inside)
    flat = [tensors[o.tensor].reshape(-1) for o in spec.outputs]
    return comb_trace(np.concatenate([g._vars.ravel() for g in given]), _joined(flat))


def _joined(arrays: list[Any]) -> Any:
    return np.concatenate([np.asarray(a._vars).ravel() for a in arrays])


def _into(x: Any, form: Format, inside: bool) -> Any:
    """An exact tensor in its format; what cannot overflow needs no hardware to say so."""
    overflow = "WRAP" if inside else form.overflow
    return x.quantize(int(form.signed), form.integer, form.fraction, overflow, form.rounding)


def _dense(spec: Spec, layer: Layer, tensors: Mapping[str, Any]) -> Any:
    weight, bias = floats(spec, layer)
    return tensors[layer.inputs[0]] @ weight.T + bias


def floats(spec: Spec, layer: Layer) -> tuple[Any, Any]:
    """What the integers of a layer's weight and bias stand for, exactly."""
    weight, bias = spec.weights[layer.name + ".weight"], spec.weights[layer.name + ".bias"]
    fractions = spec.fractions(layer)
    of_input = spec.formats[layer.inputs[0]].fraction
    scale = 2.0 ** (of_input - fractions.astype(np.float64))
    return (
        weight * scale.reshape(-1, *(1,) * (weight.ndim - 1)),
        bias * 2.0 ** -fractions.astype(np.float64),
    )


def _conv(spec: Spec, layer: Layer, tensors: Mapping[str, Any]) -> Any:
    """Every place of the kernel as a product of its own: small pictures only."""
    weight, bias = floats(spec, layer)
    groups = int(layer.attributes["groups"])
    places = _places(layer, tensors[layer.inputs[0]], 0.0, weight.shape[2:])
    per, out = weight.shape[1], weight.shape[0] // groups
    made = np.empty(layer.shape, dtype=object)
    for at in np.ndindex(*layer.shape[1:]):
        for g in range(groups):
            patch = places(at, slice(g * per, (g + 1) * per)).reshape(-1)
            rows = slice(g * out, (g + 1) * out)
            found = patch @ weight[rows].reshape(out, -1).T + bias[rows]
            made[(rows, *at)] = found._vars
    return _like(tensors[layer.inputs[0]], made)


def _like(array: Any, variables: Any) -> Any:
    return type(array[:1].reshape(-1))(variables, array.solver_options, hwconf=array.hwconf)


def _places(
    layer: Layer, array: Any, fill: float | None, kernel: tuple[int, ...]
) -> Callable[[tuple[int, ...], slice], Any]:
    """The values under the window at a place, for some channels; outside there is `fill`."""
    stride = layer.attributes["stride"]
    padding = layer.attributes.get("padding", [(0, 0)] * len(kernel))
    raw = array._vars

    def window(at: tuple[int, ...], channels: slice) -> Any:
        spots = []
        for offset in np.ndindex(*kernel):
            where = [
                p * s + o - b[0] for p, s, o, b in zip(at, stride, offset, padding, strict=True)
            ]
            if all(0 <= w < n for w, n in zip(where, raw.shape[1:], strict=True)):
                spots.append(raw[(channels, *where)])
            elif fill is not None:
                zero = raw[(channels, *(0,) * len(kernel))] * fill
                spots.append(zero)
        return _like(array, np.stack(spots, -1))

    return window


def _max_pool(spec: Spec, layer: Layer, tensors: Mapping[str, Any]) -> Any:  # noqa: ARG001
    array = tensors[layer.inputs[0]]
    places = _places(layer, array, None, tuple(layer.attributes["kernel"]))
    made = np.empty(layer.shape, dtype=object)
    for at in np.ndindex(*layer.shape[1:]):
        made[(slice(None), *at)] = np.max(places(at, slice(None)), axis=-1)._vars
    return _like(array, made)


def _avg_pool(spec: Spec, layer: Layer, tensors: Mapping[str, Any]) -> Any:  # noqa: ARG001
    array = tensors[layer.inputs[0]]
    places = _places(layer, array, None, tuple(layer.attributes["kernel"]))
    by = math.ldexp(layer.attributes["multiplier"], -layer.attributes["multiplier_fraction"])
    made = np.empty(layer.shape, dtype=object)
    for at in np.ndindex(*layer.shape[1:]):
        made[(slice(None), *at)] = (np.sum(places(at, slice(None)), axis=-1) * by)._vars
    return _like(array, made)


def _relu(spec: Spec, layer: Layer, tensors: Mapping[str, Any]) -> Any:  # noqa: ARG001
    return tensors[layer.inputs[0]].relu()


def _add(spec: Spec, layer: Layer, tensors: Mapping[str, Any]) -> Any:  # noqa: ARG001
    return tensors[layer.inputs[0]] + tensors[layer.inputs[1]]


def _flatten(spec: Spec, layer: Layer, tensors: Mapping[str, Any]) -> Any:  # noqa: ARG001
    return tensors[layer.inputs[0]].reshape(layer.shape)


_OPS: Mapping[str, Callable[..., Any]] = {
    "dense": _dense,
    "conv": _conv,
    "relu": _relu,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "add": _add,
    "flatten": _flatten,
}
