"""The integer reference: what a specification means, computed with numpy in 64 bits.

Sums whose terms stay below 2^53 in all go through float64, where they are exact and fast; others
through int64. `bounds` proves beforehand that none leaves 62 bits.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from runtimes.errors import Unsupported
from runtimes.fixed.spec import Format, Layer, Spec

EXACT = 1 << 53  # of float64
LIMIT = 1 << 62
Tensors = Dict[str, Any]


def quantize(values: Any, form: Format) -> Any:
    """Floats [...] as integers of `form`."""
    scaled = np.asarray(values, np.float64) * 2.0**form.fraction
    half = 0.5 if form.rounding == "RND" else 0.0
    return _overflow(np.floor(np.clip(scaled + half, -(2.0**62), 2.0**62)).astype(np.int64), form)


def dequantize(integers: Any, form: Format, dtype: str = "float32") -> Any:
    """The floats that integers of `form` stand for."""
    return (np.asarray(integers, np.float64) * 2.0**-form.fraction).astype(dtype)


def requantize(integers: Any, fraction: int, form: Format) -> Any:
    """Exact integers with `fraction` fraction bits, rounded and brought into `form`."""
    return _overflow(rounded(integers, fraction, form), form)


def rounded(integers: Any, fraction: int, form: Format) -> Any:
    """The same before it overflows."""
    drop = fraction - form.fraction
    if drop <= 0:
        return integers << -drop
    half = (1 << (drop - 1)) if form.rounding == "RND" else 0
    return (integers + half) >> drop


def _overflow(integers: Any, form: Format) -> Any:
    if form.overflow == "SAT":
        return np.clip(integers, form.low, form.high)
    return ((integers - form.low) & ((1 << form.bits) - 1)) + form.low


def run(spec: Spec, feeds: Mapping[str, Any]) -> Tensors:
    """Outputs by name, as floats, for a batch of float inputs by name."""
    found = integers(spec, {i.name: quantize(feeds[i.name], i.format) for i in spec.inputs})
    return outputs(spec, found)


def outputs(spec: Spec, tensors: Mapping[str, Any]) -> Tensors:
    """The model's outputs as floats, from the integers of its tensors."""
    made = {}
    for out in spec.outputs:
        values = dequantize(tensors[out.tensor], spec.formats[out.tensor], out.dtype)
        made[out.name] = values.reshape(values.shape[0], *out.shape)
    return made


def integers(
    spec: Spec, feeds: Mapping[str, Any], lost: Optional[Dict[str, int]] = None
) -> Tensors:
    """Integers of every tensor by name, for integers of the inputs, [batch, *shape] each.

    `lost`, where given, gets the number of values per layer that left their format.
    """
    tensors: Tensors = {name: np.asarray(x, np.int64) for name, x in feeds.items()}
    for layer in spec.layers:
        exact = exact_result(spec, layer, [tensors[name] for name in layer.inputs])
        fraction = spec.exact_fraction(layer)
        tensors[layer.name] = requantize(exact, fraction, layer.format)
        if lost is not None:
            before = rounded(exact, fraction, layer.format)
            lost[layer.name] = int(np.count_nonzero(before != tensors[layer.name]))
    return tensors


def exact_result(spec: Spec, layer: Layer, given: Sequence[Any]) -> Any:
    """A layer's result before it is rounded, with `spec.exact_fraction` fraction bits."""
    if layer.op in ("dense", "conv"):
        return _linear(spec, layer, given[0])
    if layer.op == "add":
        wide = spec.exact_fraction(layer)
        shifts = [wide - spec.formats[name].fraction for name in layer.inputs]
        return (given[0] << shifts[0]) + (given[1] << shifts[1])
    if layer.op == "relu":
        return np.maximum(given[0], 0)
    if layer.op == "flatten":
        return given[0].reshape(given[0].shape[0], *layer.shape)
    return _pool(layer, given[0])


def _linear(spec: Spec, layer: Layer, x: Any) -> Any:
    weight, bias = spec.weights[layer.name + ".weight"], spec.weights[layer.name + ".bias"]
    most = int(np.abs(weight).sum(axis=tuple(range(1, weight.ndim))).max(initial=0))
    form = spec.formats[layer.inputs[0]]
    kind = np.float64 if most * max(-form.low, form.high) < EXACT else np.int64
    if layer.op == "dense":
        made = x.astype(kind) @ weight.T.astype(kind)
    else:
        made = _conv(layer, x.astype(kind), weight.astype(kind))
    places = (slice(None), *(None,) * (made.ndim - 2))
    shift = (spec.exact_fraction(layer) - spec.fractions(layer))[places]
    return (made.astype(np.int64) + bias[places]) << shift


def windows(layer: Layer, x: Any, kernel: Sequence[int], fill: int) -> Any:
    """The values under each window: [batch, channels, *out, *kernel]."""
    stride = layer.attributes["stride"]
    padding = layer.attributes.get("padding", [(0, 0)] * len(kernel))
    padded = np.pad(x, [(0, 0), (0, 0), *map(tuple, padding)], constant_values=fill)
    space = tuple(range(2, x.ndim))
    every = np.lib.stride_tricks.sliding_window_view(padded, tuple(kernel), axis=space)
    return every[(slice(None), slice(None), *(slice(None, None, step) for step in stride))]


def _conv(layer: Layer, x: Any, weight: Any) -> Any:
    groups, rank = int(layer.attributes["groups"]), x.ndim - 2
    places = windows(layer, x, weight.shape[2:], 0)
    batch, out = x.shape[0], places.shape[2 : 2 + rank]
    rows = np.moveaxis(places, 1, 1 + rank).reshape(batch, int(np.prod(out)), groups, -1)
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
    made = np.concatenate([rows[:, :, g] @ kernels[g].T for g in range(groups)], -1)
    return np.moveaxis(made, -1, 1).reshape(batch, -1, *out)


def _pool(layer: Layer, x: Any) -> Any:
    rank = x.ndim - 2
    over, kernel = tuple(range(-rank, 0)), layer.attributes["kernel"]
    if layer.op == "max_pool":
        lowest = int(np.iinfo(np.int64).min)
        return windows(layer, x, kernel, lowest).max(axis=over)
    return windows(layer, x, kernel, 0).sum(axis=over) * int(layer.attributes["multiplier"])


# ------------------------------------------------------------------------------------- bounds


def bounds(spec: Spec) -> Dict[str, Tuple[int, int]]:
    """Per layer, the least and largest exact integer that any input can give.

    Raises `Unsupported` where that needs more than 62 bits.
    """
    kept = {i.name: (i.format.low, i.format.high) for i in spec.inputs}
    found: Dict[str, Tuple[int, int]] = {}
    for layer in spec.layers:
        low, high = _bounds(spec, layer, [kept[name] for name in layer.inputs])
        if max(-low, high) >= LIMIT:
            raise Unsupported("sums need more than 62 bits: use fewer", where=layer.name)
        found[layer.name] = (low, high)
        ends = requantize(np.array([low, high]), spec.exact_fraction(layer), layer.format)
        wraps = layer.format.overflow == "WRAP" and not fits(
            (low, high), spec.exact_fraction(layer), layer.format
        )
        whole = (layer.format.low, layer.format.high)
        kept[layer.name] = whole if wraps else (int(ends[0]), int(ends[1]))
    return found


def fits(ends: Tuple[int, int], fraction: int, form: Format) -> bool:
    """Whether exact integers between `ends` never leave `form`."""
    low, high = (int(end) for end in rounded(np.array(ends), fraction, form))
    return form.low <= low and high <= form.high


def _bounds(spec: Spec, layer: Layer, given: List[Tuple[int, int]]) -> Tuple[int, int]:
    low, high = given[0]
    if layer.op in ("dense", "conv"):
        shift = spec.exact_fraction(layer) - spec.fractions(layer)
        weight = spec.weights[layer.name + ".weight"]
        rows = weight.reshape(weight.shape[0], -1)
        padded = any(any(pair) for pair in layer.attributes.get("padding", []))
        low, high = (min(low, 0), max(high, 0)) if padded else (low, high)
        up, down = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
        bias = spec.weights[layer.name + ".bias"]
        least = [int(u) * low + int(d) * high + int(b) for u, d, b in zip(up, down, bias)]
        most = [int(u) * high + int(d) * low + int(b) for u, d, b in zip(up, down, bias)]
        wide = [1 << int(s) for s in shift]
        return min(a * w for a, w in zip(least, wide)), max(a * w for a, w in zip(most, wide))
    if layer.op == "add":
        exact = spec.exact_fraction(layer)
        wide = [1 << (exact - spec.formats[name].fraction) for name in layer.inputs]
        lows, highs = zip(*given)
        return sum(a * w for a, w in zip(lows, wide)), sum(a * w for a, w in zip(highs, wide))
    if layer.op == "relu":
        return max(low, 0), max(high, 0)
    if layer.op == "avg_pool":
        by = int(np.prod(layer.attributes["kernel"])) * int(layer.attributes["multiplier"])
        return low * by, high * by
    return low, high
