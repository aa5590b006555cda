"""Gram matrices of the layer inputs of an OpenVINO model, through a clone compiled in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from compressor.quantization.calibration import batches
from compressor.quantization.openvino_ir import compiled_f32
from compressor.quantization.openvino_weights import RECURRENT_TYPES, Weight, readers_of
from compressor.quantization.reconstruction import round_with
from compressor.quantization.reconstruction_rows import (
    conv_rows,
    flat_rows,
    state_rows,
    transposed_conv_rows,
    window,
)
from compressor.quantization.reconstruction_taps import LIMIT_BYTES, ROWS, Data, Tap, collect
from compressor.quantization.storage import Rounded
from exporters.base import Env
from runtimes.base import Feeds
from runtimes.types import Artifact

_CELLS = frozenset({"GRUCell", "LSTMCell", "RNNCell"})


def collect_grams_openvino(
    model: Any,
    weights: Sequence[Weight],
    data: Data,
    *,
    rows: int = ROWS,
    limit_bytes: int = LIMIT_BYTES,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Gram matrices by the friendly name of each weight's `top`, pass after pass.

    `model` (an `openvino.Model`) is left as it is; the rest is as in `collect_grams_onnx`.
    """
    main = {op.get_friendly_name() for op in model.get_ordered_ops()}
    taps = [
        tap
        for weight in weights
        if weight.top.get_friendly_name() in main  # bodies of loops cannot be tapped
        for op, port in readers_of(weight.top)
        if op.get_friendly_name() in main and (tap := _tap(weight, op, port)) is not None
    ]
    open_ = partial(_open, model)
    return collect(taps, open_, data, rows=rows, limit_bytes=limit_bytes, seed=seed)


def rounded(
    source: Artifact,
    options: Any,
    env: Env,
    model: Any,
    weights: Sequence[Weight],
    blocks: Mapping[str, int],
) -> dict[str, Rounded]:
    """Integers of 4 bits for `weights` of `model`, and the damage they do.

    By the friendly name of `top`; integers and scales as `openvino_storage` takes them.
    """
    by_name = {weight.top.get_friendly_name(): weight for weight in weights}
    made: dict[str, Rounded] = {}
    bounds = source.facts.get("bounds")
    given = env.data["calibration"]
    # One at a time: with free dimensions the engine keeps every tensor of a batch.
    data = lambda: batches(given, source.inputs, options.samples, bounds, 1)  # noqa: E731
    passes = collect_grams_openvino(model, weights, data, rows=options.rows, seed=env.context.seed)
    for grams in passes:
        for name in list(grams):
            made[name] = _round(by_name[name], grams.pop(name), blocks.get(name, 0))
            env.progress(len(made) / len(weights), f"rounded {by_name[name].name}")
    left = {name: weight for name, weight in by_name.items() if name not in made}
    return made | {name: _round(w, None, blocks.get(name, 0)) for name, w in left.items()}


def _round(weight: Weight, gram: Any | None, block: int) -> Rounded:
    values, axis = weight.rows()
    return weight.spread(round_with(values, axis, gram, block))


def _open(model: Any, names: Sequence[str], shapes: bool) -> Callable[[Feeds], Sequence[Any]]:
    """A compiled clone that gives the named tensors (`layer|in or out|port`) or their shapes."""
    import openvino as ov
    from openvino import opset13

    copy = model.clone()
    ops = {op.get_friendly_name(): op for op in copy.get_ordered_ops()}
    made, fed = [], {}
    for name in names:
        layer, side, port = name.rsplit("|", 2)
        op = ops[layer]
        value = op.input_value(int(port)) if side == "in" else op.output(int(port))
        if value.get_node().get_type_name() == "Parameter":
            # A Parameter that is an output as well corrupts memory (OpenVINO 2026.4).
            fed[name] = set(value.get_names())
            continue
        shown = opset13.shape_of(value) if shapes else value
        kind = ov.Type.i64 if shapes else ov.Type.f32
        made.append((name, opset13.convert(shown, kind).output(0)))
    first = len(copy.outputs)
    copy.add_outputs([output for _, output in made])
    compiled = compiled_f32(copy)

    def run(feeds: Feeds) -> list[Any]:
        results = list(compiled(dict(feeds), share_outputs=False).to_tuple())[first:]
        values = {name: value for (name, _), value in zip(made, results, strict=True)}
        for name, known in fed.items():
            given = next(feeds[key] for key in feeds if key in known)
            values[name] = np.asarray(np.shape(given)) if shapes else given
        return [values[name] for name in names]

    return run


def _tap(weight: Weight, op: Any, port: int) -> Tap | None:
    kind = op.get_type_name()
    key, name = weight.top.get_friendly_name(), op.get_friendly_name()
    if kind in RECURRENT_TYPES:
        return _recurrent_tap(weight, op, port)
    source = (f"{name}|in|0",)
    attributes = op.get_attributes()
    if kind == "MatMul":
        shape = weight.values.shape
        if len(shape) != 2 or port != 1:
            return None
        columns = shape[1 - weight.axis]
        turned = bool(attributes["transpose_a"])
        return Tap(key, source, partial(_plain, turned), columns, how=(kind, turned))
    if kind in {"Convolution", "GroupConvolution", "ConvolutionBackpropData"}:
        return _conv_tap(key, source, op)
    return None


def _plain(turned: bool, values: list[Any], limit: int, rng: Any) -> list[Any]:
    (array,) = values
    return flat_rows(array.swapaxes(-1, -2) if turned else array, limit, rng)


def _conv_tap(key: str, source: tuple[str, ...], op: Any) -> Tap | None:
    attributes = op.get_attributes()
    kind = op.get_type_name()
    auto = str(attributes.get("auto_pad", "explicit")).lower()
    same = auto.removeprefix("same_") if auto.startswith("same") else ""
    turned = kind == "ConvolutionBackpropData"
    if turned and same:
        return None
    shape = list(op.input_value(1).get_shape())
    groups = shape[0] if kind == "GroupConvolution" else 1
    kernel = tuple(shape[3:] if groups > 1 or kind == "GroupConvolution" else shape[2:])
    pads = [*attributes["pads_begin"], *attributes["pads_end"]]

    def rows(values: list[Any], limit: int, rng: Any) -> list[Any]:
        (array,) = values
        geometry = window(
            kernel,
            array.shape[2:],
            list(attributes["strides"]),
            list(attributes["dilations"]),
            None if auto == "valid" else pads,
            groups,
            same,
        )
        return (transposed_conv_rows if turned else conv_rows)(array, geometry, limit, rng)

    channels = {"GroupConvolution": shape[2:3], "ConvolutionBackpropData": shape[:1]}
    inputs = channels.get(kind, shape[1:2])[0]
    columns = int(inputs * np.prod(kernel))
    how = (kind, auto, kernel, *map(str, sorted(attributes.items(), key=lambda item: item[0])))
    return Tap(key, source, rows, columns, groups, groups > 1, how)


def _recurrent_tap(weight: Weight, op: Any, port: int) -> Tap | None:
    name, kind = op.get_friendly_name(), op.get_type_name()
    key, columns = weight.top.get_friendly_name(), weight.values.shape[-1]
    first = port == _input_weight(kind)
    if kind in _CELLS:
        # Inputs: X, H, (C), W, R.
        source = (f"{name}|in|{0 if first else 1}",)
        return Tap(key, source, partial(_plain, False), columns, how=("cell",))
    named = str(op.get_attributes()["direction"])
    backwards = {"forward": [False], "reverse": [True]}.get(named, [False, True])
    if first:

        def rows(values: list[Any], limit: int, rng: Any) -> list[Any]:
            return flat_rows(values[0], limit, rng) * len(backwards)

        source = (f"{name}|in|0",)
        return Tap(key, source, rows, columns, len(backwards), how=("input",))

    def states(values: list[Any], limit: int, rng: Any) -> list[Any]:
        # Y is [batch, directions, time, hidden], the first state [batch, directions, hidden].
        by_time, start = values[0].transpose(2, 1, 0, 3), values[1].transpose(1, 0, 2)
        return state_rows(by_time, start, backwards, limit, rng)

    both = (f"{name}|out|0", f"{name}|in|1")
    return Tap(key, both, states, columns, len(backwards), how=("state",))


def _input_weight(kind: str) -> int:
    """Port of W, which the layer's own input is multiplied with; R is the next one."""
    return {"LSTMSequence": 4, "LSTMCell": 3, "GRUCell": 2, "RNNCell": 2}.get(kind, 3)
