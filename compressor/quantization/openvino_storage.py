"""Weights of an OpenVINO model in 8 or 4 bits (see `quantize_weights`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from compressor.quantization.calibration import batches
from compressor.quantization.keep import kept
from compressor.quantization.onnx_pass import require_smaller
from compressor.quantization.onnx_storage import storage_note
from compressor.quantization.onnx_storage_write import dequantized
from compressor.quantization.onnx_weights import noise_share, quantize_int4, quantize_int8
from compressor.quantization.openvino_biases import (
    add_to_outputs,
    correctable,
    lost_mean,
    mean_inputs,
)
from compressor.quantization.openvino_ir import read_ir, write_ir
from compressor.quantization.openvino_names import named
from compressor.quantization.openvino_weights import (
    Weight,
    blockable,
    computable,
    find_weights,
    readers_of,
    replace_blocked,
    replace_computed,
    replace_weight,
)
from compressor.quantization.reconstruction import round_with
from compressor.quantization.storage import (
    Rounded,
    Tensor,
    asked_bits,
    asked_block,
    assigned,
    check_widths,
    halves,
    keep_in_8_bits,
    unknown_names,
)
from exporters._drop_in import require_drop_in
from exporters.base import Context, Env
from runtimes.base import Feeds
from runtimes.errors import Refusal
from runtimes.types import Artifact

# Rounds weights to 4 bits: by friendly name of `top`, integers and scales that broadcast to them.
# The last argument holds the size of blocks for those that have scales by block.
Rounding = Callable[[Any, Sequence[Weight], Mapping[str, int]], Mapping[str, Rounded]]
COMPUTED_BLOCK = 128


def _bits(weight: Weight, options: Any) -> int:
    return asked_bits(options, weight_names(weight), integer=weight.integer)


def weight_names(weight: Weight) -> list[str]:
    """Names of the layers that read it, and its own."""
    layers = [op.get_friendly_name() for op, _ in readers_of(weight.top)]
    bare = [name.removesuffix("/WithoutBiases") for name in layers]
    return [weight.name, *bare, *layers, weight.top.get_friendly_name()]


def _found(model: Any, options: Any, context: Context) -> list[Weight]:
    stay = {name.removesuffix("/WithoutBiases") for name in kept(named(model), context.keep)}
    return [w for w in find_weights(model, options.least) if w.name not in stay]


def refusals(source: Artifact, options: Any, context: Context) -> list[Refusal]:
    """Why there is nothing to store in `options.bits`."""
    check_widths(options.assign, "quantize_weights")
    found = _found(read_ir(source.path), options, context)
    if any(_bits(weight, options) != 32 for weight in found):
        return []
    kind = "float weight" if options.bits == 8 else "float or INT8 weight"
    why = f"no {kind} of {options.least} values or more outside what `keep` names"
    return [Refusal("model", why, "ship it as it is")]


def round_to_nearest(
    model: Any, weights: Sequence[Weight], blocks: Mapping[str, int]
) -> dict[str, Rounded]:
    """Integers of 4 bits at the scale of least squared error; needs no data."""
    del model
    keys = [w.top.get_friendly_name() for w in weights]
    return {
        key: round_weight(w, 4, blocks.get(key, 0)) for key, w in zip(keys, weights, strict=True)
    }


def run(
    source: Artifact, options: Any, env: Env, rounding: Rounding = round_to_nearest
) -> Artifact:
    """Store the weights and write the IR; `rounding` makes 4 bits of weights."""
    model = read_ir(source.path)
    found = _found(model, options, env.context)
    weights = [w for w in found if _bits(w, options) != 32]
    blocks, computed = _blocks(weights, options)
    made = _rounded(model, weights, options, rounding, blocks, computed)
    errors: dict[str, Callable[[], Any]] = {}
    for weight in weights:
        stored = made[weight.top.get_friendly_name()]
        if stored.bits == 8 and weight.integer:
            continue
        for layer in correctable(weight.top):
            errors[layer.get_friendly_name()] = partial(_error, weight, stored)
    if options.bias_correction and "calibration" in env.data:
        bounds = source.facts.get("bounds")
        # One at a time: with free dimensions the engine keeps every tensor of a batch.
        feeds = batches(env.data["calibration"], source.inputs, options.samples, bounds, 1)
        _correct(model, errors, feeds)
    for weight in weights:
        stored = made[weight.top.get_friendly_name()]
        if weight.top.get_friendly_name() in computed:
            replace_computed(weight, stored)
        elif stored.block:
            replace_blocked(weight, stored)
        elif stored.bits == 4 or not weight.integer:
            replace_weight(weight, stored.integers, stored.scale, stored.bits)
    bits = _by_layer(weights, {key: stored.bits for key, stored in made.items()})
    four = sum(w.values.size for w in weights if made[w.top.get_friendly_name()].bits == 4)
    share = four / sum(w.values.size for w in weights)
    write_ir(model, env.work / source.entry, source)
    known = [name for weight in found for name in weight_names(weight)]
    said = [storage_note(bits, share), *unknown_names(options, known)]
    facts = {
        **source.facts,
        "container": "ir",
        "storage": {"bits": bits, "share_4_bits": round(share, 4)},
        "notes": [*source.facts.get("notes", []), *said],
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


def _blocks(weights: list[Weight], options: Any) -> tuple[dict[str, int], set[str]]:
    """Size of blocks by weight, for those that have them; those that OpenVINO computes with."""
    found: dict[str, int] = {}
    computed: set[str] = set()
    for weight in weights:
        name, block = weight.top.get_friendly_name(), asked_block(options, weight_names(weight))
        size = block or COMPUTED_BLOCK
        if options.form == "computed" and computable(weight, size):
            computed.add(name)
            found[name] = size
        elif blockable(weight, block):
            found[name] = block
    return found, computed


def _rounded(
    model: Any,
    weights: list[Weight],
    options: Any,
    rounding: Rounding,
    blocks: Mapping[str, int],
    computed: Collection[str],
) -> dict[str, Rounded]:
    """Every weight as it will be stored, by the friendly name of its `top`."""
    four = [w for w in weights if _bits(w, options) == 4]
    made = dict(rounding(model, four, blocks)) if four else {}
    free = [w for w in four if assigned(options.assign, weight_names(w)) is None]
    names = [w.top.get_friendly_name() for w in free]
    noise = [Tensor(n, w.values.size, made[n].noise) for n, w in zip(names, free, strict=True)]
    for name in keep_in_8_bits(noise, options.share):
        del made[name]
    for weight in weights:
        key = weight.top.get_friendly_name()
        if key not in made:
            bits = _bits(weight, options)
            block = blocks.get(key, 0) if key in computed else 0
            made[key] = round_weight(weight, 16 if bits == 16 else 8, block)
    return made


def _values(stored: Rounded, weight: Weight) -> Any:
    if stored.block:
        return dequantized(stored, weight.axis)
    values = stored.integers.astype(np.float32)
    return values if stored.scale is None else values * stored.scale


def _error(weight: Weight, stored: Rounded) -> Any:
    return weight.values - _values(stored, weight)


def _correct(model: Any, errors: Mapping[str, Callable[[], Any]], feeds: Iterator[Feeds]) -> None:
    """Undo the mean of what rounding lost; one layer's error is held at a time."""
    if not errors:
        return
    means = mean_inputs(model, list(errors), feeds)
    lost = {}
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        if name in means:
            lost[op] = lost_mean(op, errors[name](), means[name])
    add_to_outputs(lost)


def round_weight(weight: Weight, bits: int, block: int = 0) -> Rounded:
    """Integers with the weight's shape, and scales that broadcast against it; halves for 16."""
    if bits == 16:
        return halves(weight.values)
    values, axis = weight.rows()
    if block:
        return round_with(values, axis, None, block, bits)
    integers, scale = (quantize_int4 if bits == 4 else quantize_int8)(values, axis)
    noise = noise_share(values, integers, scale, axis)
    return weight.spread(Rounded(integers, scale, bits, noise))
