"""SmoothQuant in an OpenVINO model: what `smooth` does for ONNX graphs, in front of NNCF.

NNCF's own uses one alpha for the whole network; measured on a small BERT it took 35 dB away where
choosing per product loses nothing. The factors are always a Multiply, which OpenVINO fuses into
what computes its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compressor.quantization.calibration import ChannelStatistics
from compressor.quantization.openvino_ir import compiled_f32
from compressor.quantization.smooth import INSERTED_GAIN, INSERTED_NOISE, Smoothed, best_factors
from exporters._memory import release
from runtimes.base import Feeds


def has_attention(model: Any) -> bool:
    """Whether products of computed operands stand around a softmax."""
    ops = model.get_ops()
    kinds = {op.get_type_name() for op in ops}
    if "ScaledDotProductAttention" in kinds:
        return True
    computed = [op for op in ops if op.get_type_name() == "MatMul" and _weight(op) is None]
    return len(computed) > 1 and "Softmax" in kinds


def smooth(model: Any, ignored: set[str], feeds: Iterator[Feeds]) -> list[Smoothed]:
    """Rewrite `model` in place, the layers named in `ignored` apart; returns what was changed."""
    groups = _groups(model, ignored)
    if not groups:
        return []
    done = []
    statistics = _channels(model, groups, feeds)
    for layers in groups:
        seen = statistics[layers[0].get_friendly_name()]
        rows = np.concatenate([_rows(op) for op in layers], axis=1)
        alpha, factors, before, after = best_factors(seen, rows, 127)
        gain = before / max(after, 1e-30)
        if gain < INSERTED_GAIN or before < INSERTED_NOISE:
            continue
        _rewrite(layers, factors)
        names = tuple(op.get_friendly_name() for op in layers)
        source = layers[0].input_value(0).get_node().get_friendly_name()
        done.append(Smoothed(source, names, alpha, float(10 * np.log10(gain)), True))
    return done


def _weight(op: Any) -> Any | None:
    node = op.input_value(1).get_node()
    return node if node.get_type_name() == "Constant" else None


def _groups(model: Any, ignored: set[str]) -> list[list[Any]]:
    """Products with weights of their own, by the tensor they read."""
    found: dict[tuple[str, int], list[Any]] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul" or op.get_friendly_name() in ignored:
            continue
        weight, source = _weight(op), op.input_value(0)
        if weight is None or weight.get_element_type().get_type_name() != "f32":
            continue
        if len(weight.get_output_shape(0)) != 2 or op.get_attributes()["transpose_a"]:
            continue
        # Factors behind a mean: 2026.4 computes something else in integers (-3 dB on a BERT).
        if source.get_node().get_type_name().startswith("Reduce"):
            continue
        rank = source.get_partial_shape().rank
        alone = len(weight.output(0).get_target_inputs()) == 1
        if alone and rank.is_static and rank.get_length() >= 2:
            key = source.get_node().get_friendly_name(), source.get_index()
            found.setdefault(key, []).append(op)
    return list(found.values())


def _rows(op: Any) -> Any:
    """The weight of `op` as [inputs, outputs]."""
    weight = _weight(op)
    assert weight is not None
    return weight.data.T if op.get_attributes()["transpose_b"] else weight.data


def _channels(
    model: Any, groups: list[list[Any]], feeds: Iterator[Feeds]
) -> dict[str, ChannelStatistics]:
    """Statistics of what each group reads, by the name of its first layer."""
    import openvino as ov
    from openvino import opset13 as ops

    copy = model.clone()
    by_name = {op.get_friendly_name(): op for op in copy.get_ordered_ops()}
    outputs = []
    for layers in groups:
        source = by_name[layers[0].get_friendly_name()].input_value(0)
        rank = source.get_partial_shape().rank.get_length()
        axes = ops.constant(np.arange(rank - 1, dtype=np.int64))
        square = ops.multiply(source, source)
        outputs += [
            ops.reduce_min(source, axes, False).output(0),
            ops.reduce_max(source, axes, False).output(0),
            ops.reduce_mean(square, axes, False).output(0),
        ]
    release()
    compiled = compiled_f32(ov.Model(outputs, copy.get_sinks(), copy.get_parameters()))
    names = [layers[0].get_friendly_name() for layers in groups]
    found: dict[str, ChannelStatistics] = {}
    seen = 0
    for batch in feeds:
        count = len(next(iter(batch.values())))
        values = [v.astype(np.float64) for v in compiled(dict(batch)).to_tuple()]
        for i, name in enumerate(names):
            part = ChannelStatistics(*values[3 * i : 3 * i + 3])
            found[name] = part if name not in found else found[name].joined(part, seen, count)
        seen += count
    return found


def _rewrite(layers: list[Any], factors: Any) -> None:
    from openvino import opset13 as ops

    source = layers[0].input_value(0)
    rank = source.get_partial_shape().rank.get_length()
    inverse = (1 / factors).astype(np.float32).reshape([1] * (rank - 1) + [-1])
    scaled = ops.multiply(source, ops.constant(inverse))
    scaled.set_friendly_name(f"{layers[0].get_friendly_name()}/smooth")
    for op in layers:
        weight = _weight(op)
        assert weight is not None
        by = factors if op.get_attributes()["transpose_b"] else factors[:, None]
        made = ops.constant((weight.data * by).astype(np.float32))
        made.set_friendly_name(weight.get_friendly_name())
        op.input(0).replace_source_output(scaled.output(0))
        op.input(1).replace_source_output(made.output(0))
