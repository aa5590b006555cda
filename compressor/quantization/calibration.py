"""Ranges of activations, from calibration data that streams through ONNX Runtime.

The model gets extra outputs that reduce each tensor to a few numbers inside the engine, so memory
stays that of one batch whatever the number of samples. The `mse` method makes a second pass that
keeps a histogram of fixed size for each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from exporters._check import onnx_session
from exporters._onnx_graph import opset_of
from exporters.base import Samples, batch_range
from runtimes.base import Feeds
from runtimes.errors import UsageError
from runtimes.types import TensorSpec

_BATCH = 16
_BINS = 2048
_SHARES = np.linspace(1.0, 0.1, 91)
_SEPARATOR = "//"
Range = tuple[float, float]


@dataclass
class Statistics:
    """What calibration found: (low, high) of each tensor, and the mean of each channel."""

    ranges: dict[str, Range] = field(default_factory=dict)
    means: dict[str, Any] = field(default_factory=dict)
    samples: int = 0


def batches(
    samples: Samples,
    inputs: Sequence[TensorSpec],
    limit: int,
    bounds: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[Feeds]:
    """At most `limit` samples as feeds the model takes, within its fixed or bounded batch size."""
    low, high = batch_range(inputs, bounds)
    size = max(low, min(high, 1 if samples.ragged else _BATCH))
    chosen = list(range(min(limit, len(samples))))
    if not chosen:
        raise UsageError("no calibration samples", where="calibration", fix="hand in about 300")
    for indices, feeds in samples.batches(size, chosen):
        if len(indices) >= low:
            yield feeds


def calibrate(
    model: Any,
    tensors: Sequence[str],
    mean_axes: Mapping[str, tuple[int, ...]],
    data: Callable[[], Iterator[Feeds]],
    *,
    method: str = "minmax",
    threads: int = 1,
    told: Callable[[int], None] | None = None,
) -> Statistics:
    """Run `data` through `model` (an `onnx.ModelProto`, left as it is) and collect statistics.

    Args:
        model: what to observe.
        tensors: names of float tensors whose range is wanted.
        mean_axes: tensor → the axes to average over; what is left are its channels.
        data: gives a fresh iterator of feeds at each call; `mse` asks twice.
        method: `minmax` (nothing is clipped) or `mse` (the range of least squared error at
            8 bits, from a histogram of 2048 bins).
        threads: of the engine.
        told: is called with the number of samples done.

    Raises:
        UsageError: an activation is NaN or infinite.
    """
    found = Statistics()
    for outputs, count in _stream(_with_taps(model, tensors, mean_axes), data, threads):
        _merge(found, outputs, count)
        if told is not None:
            told(found.samples)
    _check_finite(found.ranges)
    if method == "mse" and found.ranges:
        found.ranges = _least_squares_ranges(model, found.ranges, data, threads)
    return found


def _with_taps(model: Any, tensors: Sequence[str], mean_axes: Mapping[str, tuple[int, ...]]) -> Any:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in tensors:
        for kind, op in (("min", "ReduceMin"), ("max", "ReduceMax")):
            node = onnx.helper.make_node(op, [name], [f"{name}{_SEPARATOR}{kind}"], keepdims=0)
            _tap(copy.graph, node)
    for name, axes in mean_axes.items():
        _tap(copy.graph, _mean_node(copy, name, axes))
    return copy


def _tap(graph: Any, node: Any) -> None:
    import onnx

    graph.node.append(node)
    floats = onnx.TensorProto.FLOAT
    graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], floats, None))


def _mean_node(model: Any, name: str, axes: tuple[int, ...]) -> Any:
    import onnx

    made = f"{name}{_SEPARATOR}mean"
    if opset_of(model) < 18:  # the axes were an attribute until then
        return onnx.helper.make_node("ReduceMean", [name], [made], axes=axes, keepdims=0)
    values = onnx.numpy_helper.from_array(np.asarray(axes, np.int64), made + "/axes")
    model.graph.initializer.append(values)
    return onnx.helper.make_node("ReduceMean", [name, values.name], [made], keepdims=0)


def _stream(
    model: Any, data: Callable[[], Iterator[Feeds]], threads: int
) -> Iterator[tuple[dict[str, Any], int]]:
    session = onnx_session(model.SerializeToString(), threads)
    names = [output.name for output in session.get_outputs()]
    for feeds in data():
        count = len(next(iter(feeds.values())))
        values = dict(zip(names, session.run(names, dict(feeds)), strict=True))
        # The engine's minimum and maximum pass over NaN; the model's own outputs show it.
        for name in [name for name in names if _SEPARATOR not in name]:
            _check_output(name, values.pop(name))
        yield values, count


def _merge(found: Statistics, outputs: Mapping[str, Any], count: int) -> None:
    share = count / (found.samples + count)
    for key, value in outputs.items():
        name, _, kind = key.rpartition(_SEPARATOR)
        if kind == "mean":
            before = found.means.get(name, 0.0)
            found.means[name] = before + share * (value.astype(np.float64) - before)
        else:
            low, high = found.ranges.get(name, (np.inf, -np.inf))
            at = float(value)
            found.ranges[name] = (min(low, at), high) if kind == "min" else (low, max(high, at))
    found.samples += count


def _check_output(name: str, values: Any) -> None:
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise _not_finite(f"output {name}", "NaN")


def _not_finite(where: str, got: str) -> UsageError:
    return UsageError(
        "the model computes NaN or infinity on the calibration data",
        where=where,
        expected="finite values",
        got=got,
        fix="check the data's preprocessing, or keep the layer before it in float",
    )


def _check_finite(ranges: Mapping[str, Range]) -> None:
    for name, (low, high) in ranges.items():
        if not np.isfinite(low) or not np.isfinite(high):
            raise _not_finite(f"activation {name}", f"{low} to {high}")


def _least_squares_ranges(
    model: Any, ranges: Mapping[str, Range], data: Callable[[], Iterator[Feeds]], threads: int
) -> dict[str, Range]:
    counts = {name: np.zeros(_BINS) for name in ranges}
    copy = type(model)()
    copy.CopyFrom(model)
    shown = {name: f"{name}{_SEPARATOR}all" for name in ranges}
    import onnx

    for name, out in shown.items():
        _tap(copy.graph, onnx.helper.make_node("Identity", [name], [out]))
    for outputs, _ in _stream(copy, data, threads):
        for name, out in shown.items():
            low, high = ranges[name]
            if high > low:
                counts[name] += np.histogram(outputs[out], _BINS, (low, high))[0]
    return {name: _clip(counts[name], *ranges[name]) for name in ranges}


def _clip(counts: Any, low: float, high: float) -> Range:
    """The part of [low, high] around 0 whose 256 levels leave the least squared error.

    Each end is moved by itself, twice: an outlier on one side must not cost the other its range.
    """
    if not counts.any():
        return low, high
    centres = low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
    low, high = min(low, 0.0), max(high, 0.0)
    bottom, top = low, high
    for _ in range(2):
        top = min(
            (share * high for share in _SHARES), key=lambda t: _loss(counts, centres, bottom, t)
        )
        bottom = min(
            (share * low for share in _SHARES), key=lambda b: _loss(counts, centres, b, top)
        )
    return bottom, top


def _loss(counts: Any, centres: Any, bottom: float, top: float) -> float:
    """Squared error of clipping to [bottom, top] plus that of rounding inside."""
    clipped = np.clip(centres, bottom, top)
    rounding = ((top - bottom) / 255) ** 2 / 12
    return float(counts @ ((centres - clipped) ** 2 + np.where(clipped == centres, rounding, 0.0)))
