"""Weights of an OpenVINO model in 8 or 4 bits (see `quantize_weights`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compressor.quantization.calibration import batches
from compressor.quantization.keep import kept
from compressor.quantization.onnx_pass import require_smaller
from compressor.quantization.onnx_storage import storage_note
from compressor.quantization.onnx_weights import quantize_int4, quantize_int8
from compressor.quantization.openvino_biases import (
    add_to_outputs,
    correctable,
    lost_mean,
    mean_inputs,
)
from compressor.quantization.openvino_ir import read_ir, write_ir
from compressor.quantization.openvino_names import named
from compressor.quantization.openvino_weights import Weight, find_weights, replace_weight
from compressor.quantization.storage import Tensor, keep_in_8_bits
from exporters._drop_in import require_drop_in
from exporters.base import Context, Env
from runtimes.base import Feeds
from runtimes.errors import Refusal
from runtimes.types import Artifact


def _chosen(model: Any, options: Any, context: Context) -> list[Weight]:
    stay = {name.removesuffix("/WithoutBiases") for name in kept(named(model), context.keep)}
    found = find_weights(model, options.least)
    return [w for w in found if w.name not in stay and (options.bits == 4 or not w.integer)]


def refusals(source: Artifact, options: Any, context: Context) -> list[Refusal]:
    """Why there is nothing to store in `options.bits`."""
    if _chosen(read_ir(source.path), options, context):
        return []
    kind = "float weight" if options.bits == 8 else "float or INT8 weight"
    why = f"no {kind} of {options.least} values or more outside what `keep` names"
    return [Refusal("model", why, "ship it as it is")]


def run(source: Artifact, options: Any, env: Env) -> Artifact:
    """Store the weights and write the IR."""
    model = read_ir(source.path)
    weights = _chosen(model, options, env.context)
    made = {w.top.get_friendly_name(): _round(w, options.bits) for w in weights}
    stay: set[str] = set()
    if options.bits == 4:
        noise = [
            Tensor(
                w.top.get_friendly_name(),
                w.values.size,
                _noise(w, *made[w.top.get_friendly_name()]),
            )
            for w in weights
        ]
        stay = keep_in_8_bits(noise, options.share)
    bits, errors = {}, {}
    for weight in weights:
        key = weight.top.get_friendly_name()
        width = 8 if key in stay else options.bits
        bits[key] = width  # by weight: a recurrent layer has two
        if width == 8 and weight.integer:
            continue
        made[key] = integers, scale = _round(weight, 8) if key in stay else made[key]
        for layer in correctable(weight.top):
            errors[layer.get_friendly_name()] = weight.values - integers * scale
    if options.bias_correction and "calibration" in env.data:
        bounds = source.facts.get("bounds")
        feeds = batches(env.data["calibration"], source.inputs, options.samples, bounds)
        _correct(model, errors, feeds)
    for weight in weights:
        key = weight.top.get_friendly_name()
        if bits[key] == 4 or not weight.integer:
            replace_weight(weight, *made[key], bits[key])
    four = sum(w.values.size for w in weights if bits[w.top.get_friendly_name()] == 4)
    share = four / sum(w.values.size for w in weights)
    told = _by_layer(weights, bits)
    write_ir(model, env.work / source.entry, source)
    facts = {
        **source.facts,
        "container": "ir",
        "storage": {"bits": told, "share_4_bits": round(share, 4)},
        "notes": [*source.facts.get("notes", []), storage_note(told, share)],
    }
    artifact = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )
    require_smaller(source, artifact)
    return require_drop_in(source, artifact)


def _by_layer(weights: list[Weight], bits: dict[str, int]) -> dict[str, int]:
    """Bits under the names of layers; of a layer's second weight with a number behind."""
    told: dict[str, int] = {}
    for weight in weights:
        name = f"{weight.name} (2)" if weight.name in told else weight.name
        told[name] = bits[weight.top.get_friendly_name()]
    return told


def _correct(model: Any, errors: dict[str, Any], feeds: Iterator[Feeds]) -> None:
    if not errors:
        return
    means = mean_inputs(model, list(errors), feeds)
    lost = {}
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if name in means:
            lost[op] = lost_mean(op, errors[name], means[name])
    add_to_outputs(lost)


def _round(weight: Weight, bits: int) -> tuple[Any, Any]:
    """Integers with the weight's shape, and scales that broadcast against it."""
    shape = weight.values.shape
    values, axis = weight.values, weight.axis
    if weight.grouped:
        values, axis = values.reshape(-1, *shape[2:]), 0
    integers, scale = (quantize_int4 if bits == 4 else quantize_int8)(values, axis)
    along = [1] * len(shape)
    if weight.grouped:
        along[:2] = shape[:2]
    else:
        along[axis] = -1
    return integers.reshape(shape), scale.reshape(along)


def _noise(weight: Weight, integers: Any, scale: Any) -> float:
    power = float((weight.values**2).sum())
    return float(((weight.values - integers * scale) ** 2).sum()) / power if power else 0.0
