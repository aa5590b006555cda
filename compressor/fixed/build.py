"""Formats from calibration, and the specification of a trained student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compressor.fixed.read import FloatLayer, FloatNet
from runtimes.errors import Unsupported
from runtimes.fixed.reference import bounds
from runtimes.fixed.spec import Format, Input, Layer, Output, Spec

MEAN_BITS = 8  # of the multiplier of a mean over a number that is no power of two
KEPT = 4096  # values of a tensor and batch that calibration looks at


def mean_multiplier(kernel: Sequence[int]) -> tuple[int, int]:
    """(multiplier, fraction bits) that stand for a division by the kernel's size."""
    count = math.prod(kernel)
    if count & (count - 1) == 0:
        return 1, count.bit_length() - 1
    fraction = MEAN_BITS + count.bit_length() - 1
    return round(2.0**fraction / count), fraction


def exact(net: FloatNet, layer: FloatLayer) -> bool:
    """Whether a layer's result keeps every bit: what is cut right away, moved, or handed out."""
    if layer.op in ("max_pool", "flatten"):
        return True
    if layer.op == "relu":
        return False
    readers = net.consumers(layer.name)
    return all(reader.op == "relu" for reader in readers)


def calibrated(
    student: Any,
    batches: Sequence[Sequence[Any]],
    bits: int,
    input_format: Format | None,
    input_bits: int,
    rounding: str,
) -> dict[str, Format]:
    """Formats of inputs and of every tensor that is rounded, with the least squared error.

    Tensors are looked at one after the other, each behind those that have their format already.
    """  # fmt: skip
    import torch

    student.formats = {}
    net: FloatNet = student.net
    names = [name for name, _, _ in net.inputs]
    names += [layer.name for layer in net.layers if not exact(net, layer)]
    student.eval()
    for name in names:
        with torch.no_grad():
            found = [student.tensors(tuple(batch))[name].flatten() for batch in batches]
        values = np.concatenate([x[:: max(1, len(x) // KEPT)].double().numpy() for x in found])
        of_input = name in names[: len(net.inputs)]
        if of_input and input_format is not None:
            student.formats[name] = input_format
        else:
            student.formats[name] = best_format(values, input_bits if of_input else bits, rounding)
    return dict(student.formats)


def best_format(values: Any, bits: int, rounding: str = "RND") -> Format:
    """The saturating format of `bits` bits with the least squared error on `values`."""
    signed = bool((values < 0).any())
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    top = math.floor(math.log2(largest)) + 1
    candidates = []
    for integer in range(top, top - 4, -1):
        form = Format(signed, integer, bits - int(signed) - integer, rounding)
        half = 0.5 if rounding == "RND" else 0.0
        made = np.clip(np.floor(values * 2.0**form.fraction + half), form.low, form.high)
        candidates.append((float(np.square(made * 2.0**-form.fraction - values).sum()), form))
    return min(candidates, key=lambda pair: pair[0])[1]


def build(student: Any, overflow: str = "SAT") -> Spec:
    """The specification of a student, exact sums in words that just hold every possible input.

    Raises `Unsupported` where a sum needs more than 62 bits.
    """
    net: FloatNet = student.net
    threshold = student.threshold(student.zero)
    forms: dict[str, Format] = dict(student.formats)
    inputs = tuple(Input(n, shape, kind, forms[n]) for n, shape, kind in net.inputs)
    outputs = tuple(Output(n, tensor, shape, kind) for n, tensor, shape, kind in net.outputs)
    spec = Spec(inputs, (), outputs, {})
    for layer in net.layers:
        attributes, weights = dict(layer.attributes), dict(spec.weights)
        if layer.weight is not None:
            told, arrays = _integers(student, layer, threshold, spec.formats)
            attributes |= told
            weights |= arrays
        if layer.op == "avg_pool":
            number, fraction = mean_multiplier(attributes["kernel"])
            attributes |= {"multiplier": number, "multiplier_fraction": fraction}
        wide = Format(True, 0, 0)
        made = Layer(layer.name, layer.op, layer.inputs, layer.shape, wide, attributes)
        spec = replace(spec, weights=weights, layers=(*spec.layers, made))
        form = forms.get(layer.name)
        form = _holding(spec, made) if form is None else replace(form, overflow=overflow)
        spec = replace(spec, layers=(*spec.layers[:-1], replace(made, format=form)))
    return spec


def _holding(spec: Spec, layer: Layer) -> Format:
    """The least format that holds a layer's exact result, or its input's where values only move."""
    if layer.op in ("max_pool", "flatten"):
        return spec.formats[layer.inputs[0]]
    low, high = bounds(spec)[layer.name]
    fraction = spec.exact_fraction(layer)
    width = max((-low - 1).bit_length() if low < 0 else 0, high.bit_length() if high > 0 else 0, 1)
    return Format(low < 0, width - fraction, fraction)


def _integers(
    student: Any, layer: FloatLayer, threshold: float, forms: dict[str, Format]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A layer's entries in the specification, and its integers."""
    import torch

    with torch.no_grad():
        weight, fraction = student.rounded(layer.name, threshold)
        of_input = forms[layer.inputs[0]].fraction
        bias = student.bias(layer.name, fraction, of_input)
    places = (-1, *(1,) * (weight.dim() - 1))
    whole = weight.double() * torch.exp2(fraction.double()).view(places)
    added = bias.double() * torch.exp2(fraction.double() + of_input)
    arrays = {
        layer.name + ".weight": whole.round().long().numpy(),
        layer.name + ".bias": added.round().long().numpy(),
    }
    if not torch.equal(whole, whole.round()) or not torch.equal(added, added.round()):
        raise Unsupported("a sum needs more bits than float32 has: use fewer", where=layer.name)
    fractions = [int(f) for f in fraction]
    told = fractions if student.per_channel else fractions[0]
    wide = int(np.abs(arrays[layer.name + ".bias"]).max(initial=0)).bit_length() + 1
    return {
        "weight": {"bits": student.bits[layer.name], "fraction": told},
        "bias": {"bits": wide},
    }, arrays
