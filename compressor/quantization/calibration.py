"""Ranges of activations, from calibration data that streams through ONNX Runtime.

The model gets extra outputs that reduce each tensor to a few numbers inside the engine. The methods
that clip make a second pass for a histogram of fixed size of each tensor, a slice of a batch and,
where need be, some of the tensors at a time: memory does not depend on the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compressor.quantization.calibration_ranges import BINS, METHODS, Range, histogram
from compressor.quantization.convergence import Point, Widening
from exporters._onnx_graph import fixed_batch, opset_of
from exporters._onnx_session import tapped_session
from exporters.base import Samples, batch_range
from runtimes.base import Feeds
from runtimes.errors import UsageError
from runtimes.types import TensorSpec

BATCH = 16
BUDGET = 64 << 20  # bytes of activations that are looked at together
OUTPUTS = 32 << 20  # bytes of the model's own outputs that one call may give
_WAITING = 64 << 20  # bytes of samples that wait for others of their shape
_SEPARATOR = "//"
_Feeder = Callable[[], Iterator[Feeds]]

__all__ = ["ChannelStatistics", "Range", "Statistics", "batches", "calibrate", "channels"]


@dataclass
class Statistics:
    """What calibration found.

    Attributes:
        ranges: (low, high) of each tensor, after the first method that was asked for.
        by_method: the same after each of them.
        means: the mean of each channel.
        samples: how many were seen.
        series: how wide the ranges were on the way.
        held_bytes: histograms, and the activations that were held at once to fill them.
    """

    ranges: dict[str, Range] = field(default_factory=dict)
    by_method: dict[str, dict[str, Range]] = field(default_factory=dict)
    means: dict[str, Any] = field(default_factory=dict)
    samples: int = 0
    series: tuple[Point, ...] = ()
    held_bytes: int = 0


@dataclass
class ChannelStatistics:
    """Smallest and largest value and mean square of each channel (the last axis)."""

    low: Any
    high: Any
    square: Any

    def joined(self, other: ChannelStatistics, before: int, count: int) -> ChannelStatistics:
        """Of `before` samples here and the `count` samples in `other`."""
        share = count / (before + count)
        return ChannelStatistics(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.square + share * (other.square - self.square),
        )


def batches(
    samples: Samples,
    inputs: Sequence[TensorSpec],
    limit: int,
    bounds: Mapping[str, Sequence[int]] | None = None,
    most: int = BATCH,
) -> Iterator[Feeds]:
    """At most `limit` samples as feeds the model takes, within its fixed or bounded batch size.

    Otherwise `most` are put together.

    Samples of different shapes are put together with others of their own shape.
    """
    low, high = batch_range(inputs, bounds)
    size = max(low, min(high, most))
    chosen = list(range(min(limit, len(samples))))
    if not chosen:
        raise UsageError("no calibration samples", where="calibration", fix="hand in about 300")
    if samples.ragged:
        yield from (f for f in _bucketed(samples, chosen, size) if _rows(f) >= low)
        return
    for indices, feeds in samples.batches(size, chosen):
        if len(indices) >= low:
            yield feeds


def at_most(feeds: Sequence[Feeds], samples: int) -> list[Feeds]:
    """The first batches of `feeds` that hold at most `samples`; the first one in any case."""
    found = [feeds[0]]
    for batch in feeds[1:]:
        samples -= _rows(found[-1])
        if _rows(batch) > samples:
            break
        found.append(batch)
    return found


def count(feeds: Sequence[Feeds]) -> int:
    """Samples in all batches."""
    return sum(map(_rows, feeds))


def _rows(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def _bucketed(samples: Samples, chosen: Sequence[int], size: int) -> Iterator[Feeds]:
    waiting: dict[tuple[Any, ...], list[Feeds]] = {}
    held = 0
    for i in chosen:
        feeds = samples.feeds([i])
        key = tuple((name, array.shape[1:]) for name, array in feeds.items())
        waiting.setdefault(key, []).append(feeds)
        held += _bytes(feeds)
        if len(waiting[key]) < size and held <= _WAITING:
            continue
        fullest = max(waiting, key=lambda k: (len(waiting[k]), k == key))
        bucket = waiting.pop(fullest)
        held -= sum(map(_bytes, bucket))
        yield _joined(bucket)
    yield from map(_joined, waiting.values())


def _bytes(feeds: Feeds) -> int:
    return sum(array.nbytes for array in feeds.values())


def _joined(bucket: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([feeds[name] for feeds in bucket]) for name in bucket[0]}


def calibrate(
    model: Any,
    tensors: Sequence[str],
    mean_axes: Mapping[str, tuple[int, ...]],
    data: _Feeder,
    *,
    method: str = "minmax",
    methods: Sequence[str] = (),
    threads: int = 1,
    told: Callable[[int], None] | None = None,
    said: Callable[[str], None] | None = None,
) -> Statistics:
    """Run `data` through `model` (an `onnx.ModelProto`, left as it is) and collect statistics.

    Args:
        model: what to observe.
        tensors: names of float tensors whose range is wanted.
        mean_axes: tensor → the axes to average over; what is left are its channels.
        data: gives a fresh iterator of feeds at each call; all methods but `minmax` ask twice.
        method: one of `calibration_ranges.METHODS`.
        methods: several at once, in place of `method`; they share one histogram.
        threads: of the engine.
        told: is called with the number of samples done.
        said: is told how much memory the histograms will take, before they are filled.

    Raises:
        UsageError: an activation is NaN or infinite.
    """
    wanted = tuple(methods) or (method,)
    clips = bool(tensors) and wanted != ("minmax",)
    found, sizes = Statistics(), dict[str, int]()
    taps = _taps(model, tensors, mean_axes, sizes=clips)
    widening = Widening()
    for outputs, count in _stream(model, taps, data, threads):
        _merge(found, outputs, count, sizes)
        widening.add(_spans(outputs, tensors), count)
        if told is not None:
            told(found.samples)
    _check_finite(widening.ranges)
    found.ranges, found.series = widening.ranges, widening.series()
    if clips:
        counts = _histograms(model, found, sizes, data, threads, said)
        for name in wanted:
            shape = METHODS[name]
            found.by_method[name] = {t: shape(counts[t], *found.ranges[t]) for t in counts}
    else:
        found.by_method = {name: dict(found.ranges) for name in wanted}
    found.ranges = found.by_method[wanted[0]]
    return found


def channels(
    model: Any, tensors: Mapping[str, int], data: _Feeder, threads: int = 1
) -> dict[str, ChannelStatistics]:
    """Statistics per channel of `tensors` (name → rank) whose last axis holds the channels."""
    import onnx

    taps = _Taps(model)
    for name, rank in tensors.items():
        axes = tuple(range(rank - 1))
        squared = f"{name}{_SEPARATOR}squared"
        taps.nodes.append(onnx.helper.make_node("Mul", [name, name], [squared]))
        for kind, op, source in (
            ("low", "ReduceMin", name),
            ("high", "ReduceMax", name),
            ("square", "ReduceMean", squared),
        ):
            taps.reduce(op, source, f"{name}{_SEPARATOR}{kind}", axes)
    found: dict[str, ChannelStatistics] = {}
    seen = 0
    for outputs, count in _stream(model, taps, data, threads):
        for name in tensors:
            values = [outputs[f"{name}{_SEPARATOR}{k}"] for k in ("low", "high", "square")]
            part = ChannelStatistics(*(value.astype(np.float64) for value in values))
            found[name] = part if name not in found else found[name].joined(part, seen, count)
        seen += count
    _check_finite({n: (s.low.min(), s.high.max()) for n, s in found.items()})
    return found


class _Taps:
    """Nodes that read inner tensors of a model, and the outputs they make."""

    def __init__(self, model: Any) -> None:
        self.opset = opset_of(model)
        self.nodes: list[Any] = []
        self.outputs: list[Any] = []

    def add(self, op: str, inputs: list[str], made: str, kind: int = 1, **attributes: Any) -> None:
        """A node whose result is an output."""
        import onnx

        self.nodes.append(onnx.helper.make_node(op, inputs, [made], **attributes))
        self.outputs.append(onnx.helper.make_tensor_value_info(made, kind, None))

    def reduce(self, op: str, name: str, made: str, axes: tuple[int, ...]) -> None:
        """A reduction over `axes`, which were an attribute until operator set 18."""
        import onnx

        if self.opset < 18:
            self.add(op, [name], made, axes=axes, keepdims=0)
            return
        values = onnx.numpy_helper.from_array(np.asarray(axes, np.int64))
        self.nodes.append(onnx.helper.make_node("Constant", [], [made + "/axes"], value=values))
        self.add(op, [name, made + "/axes"], made, keepdims=0)


def _taps(
    model: Any, tensors: Sequence[str], mean_axes: Mapping[str, tuple[int, ...]], sizes: bool
) -> _Taps:
    import onnx

    taps = _Taps(model)
    for name in tensors:
        taps.add("ReduceMin", [name], f"{name}{_SEPARATOR}min", keepdims=0)
        taps.add("ReduceMax", [name], f"{name}{_SEPARATOR}max", keepdims=0)
        if sizes:
            taps.add("Size", [name], f"{name}{_SEPARATOR}size", onnx.TensorProto.INT64)
    for name, axes in mean_axes.items():
        taps.reduce("ReduceMean", name, f"{name}{_SEPARATOR}mean", axes)
    return taps


def _stream(
    model: Any, taps: _Taps, data: _Feeder, threads: int, rows: int = 0
) -> Iterator[tuple[dict[str, Any], int]]:
    """Taps of each batch, or of each `rows` samples of it, and the number of samples."""
    outputs = [*model.graph.output, *taps.outputs]
    session = tapped_session(model, taps.nodes, outputs, threads)
    names = [output.name for output in session.get_outputs()]
    for batch in data():
        for feeds in _slices(batch, rows or _rows_of_outputs(session, batch)):
            values = dict(zip(names, session.run(names, dict(feeds)), strict=True))
            # The engine's minimum and maximum pass over NaN; the model's own outputs show it.
            for name in [name for name in names if _SEPARATOR not in name]:
                _check_output(name, values.pop(name))
            yield values, _rows(feeds)
            values.clear()  # before the next ones are there


def _rows_of_outputs(session: Any, feeds: Feeds) -> int:
    """Samples whose outputs, as logits of a long text, fit `OUTPUTS`; 0 where all do, or must."""
    shapes = {spec.name: spec.shape for spec in session.get_inputs() if spec.name in feeds}
    if any(not shape or isinstance(shape[0], int) for shape in shapes.values()):
        return 0
    pairs = (zip(shape, feeds[name].shape, strict=False) for name, shape in shapes.items())
    sizes = {dim: size for pair in pairs for dim, size in pair}
    own = (spec.shape[1:] for spec in session.get_outputs() if _SEPARATOR not in spec.name)
    values = sum(math.prod(d if isinstance(d, int) else sizes.get(d, 1) for d in s) for s in own)
    rows = OUTPUTS // (4 * values or 1)
    return 0 if rows >= _rows(feeds) else max(1, int(rows))


def _slices(feeds: Feeds, rows: int) -> Iterator[Feeds]:
    count = _rows(feeds)
    if not 0 < rows < count:
        yield feeds
        return
    for start in range(0, count, rows):
        yield {name: array[start : start + rows] for name, array in feeds.items()}


def _merge(
    found: Statistics, outputs: Mapping[str, Any], count: int, sizes: dict[str, int]
) -> None:
    share = count / (found.samples + count)
    for key, value in outputs.items():
        name, _, kind = key.rpartition(_SEPARATOR)
        if kind == "mean":
            before = found.means.get(name, 0.0)
            found.means[name] = before + share * (value.astype(np.float64) - before)
        elif kind == "size":
            sizes[name] = max(sizes.get(name, 0), -(-int(value) // count))
    found.samples += count


def _spans(outputs: Mapping[str, Any], tensors: Sequence[str]) -> dict[str, Range]:
    ends = {
        name: [float(outputs[f"{name}{_SEPARATOR}{end}"]) for end in ("min", "max")]
        for name in tensors
    }
    return {name: (low, high) for name, (low, high) in ends.items()}


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


def _histograms(
    model: Any,
    found: Statistics,
    sizes: Mapping[str, int],
    data: _Feeder,
    threads: int,
    said: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Counts for each tensor of `sizes` (values a sample), `BUDGET` bytes of them at a time."""
    rows = _rows_at_once(model, sizes)
    parts = _parts(sizes, rows)
    held = max(4 * rows * sum(sizes[name] for name in part) for part in parts)
    found.held_bytes = held + 8 * BINS * len(sizes)
    if said is not None:
        passes = f" in {len(parts)} passes" if len(parts) > 1 else ""
        said(f"calibration holds {found.held_bytes / 1e6:.0f} MB for its histograms{passes}")
    counts = {name: np.zeros(BINS) for name in sizes}
    for part in parts:
        taps = _Taps(model)
        shown = {name: f"{name}{_SEPARATOR}all" for name in part}
        for name, out in shown.items():
            taps.add("Identity", [name], out)
        for outputs, _ in _stream(model, taps, data, threads, rows):
            for name, out in shown.items():
                counts[name] += histogram(outputs[out], *found.ranges[name])
    return counts


def _rows_at_once(model: Any, sizes: Mapping[str, int]) -> int:
    """Samples whose activations fit the budget, or the batch where that is fixed."""
    most = max(1, min(BATCH, BUDGET // (4 * sum(sizes.values()) or 1)))
    return fixed_batch(model) or int(most)


def _parts(sizes: Mapping[str, int], rows: int) -> list[list[str]]:
    """The tensors in groups that fit the budget, or hold one tensor."""
    parts: list[list[str]] = [[]]
    room = BUDGET
    for name, size in sizes.items():
        need = 4 * size * rows
        if parts[-1] and need > room:
            parts.append([])
            room = BUDGET
        parts[-1].append(name)
        room -= need
    return parts
