"""Calibration data for pruning an ONNX graph: parts for fitting, choosing and reporting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.env import Part
from compressor.quantization.calibration import batches
from compressor.quantization.reconstruction_taps import BATCH
from exporters._check import ort_errors
from exporters._onnx_session import tapped_session
from exporters.base import Samples, batch_range, example_feeds
from runtimes.base import Feeds
from runtimes.errors import Refusal, Unsupported
from runtimes.types import Artifact, TensorSpec

_TOGETHER = 64 << 20  # bytes
LEAST = 10  # samples; with fewer, nothing can be fitted and checked


@dataclass(frozen=True)
class Parts:
    """Disjoint samples: `fit` for solving, `choose` for what may overfit, `held` for the report."""

    inputs: Sequence[TensorSpec]
    fit: Samples
    choose: Samples
    held: Samples
    batch: int

    def feeds(self, part: Samples, limit: int) -> Iterator[Feeds]:
        """Batches of one of the parts."""
        return batches(part, self.inputs, limit, most=self.batch)


def enough(inputs: Sequence[TensorSpec], data: Samples | None, samples: int) -> bool:
    """Whether each part would fill a batch the model takes."""
    low, _ = batch_range(inputs)
    return data is not None and min(len(data), samples) >= max(LEAST, 5 * low + 3)


def batch_for(activations: float) -> int:
    """Samples to run together whose activations have so many bytes each."""
    return int(np.clip(_TOGETHER / max(1.0, activations), BATCH, 32))


def parts(
    inputs: Sequence[TensorSpec], data: Samples, samples: int, seed: int, batch: int
) -> Parts:
    """At most `samples` samples drawn with `seed`: 60 % to fit, 20 % to choose, 20 % held out."""
    order = np.random.default_rng(seed).permutation(len(data))[:samples]
    cuts = [round(len(order) * 0.6), round(len(order) * 0.8)]
    names = ("fitting", "choosing", "held out")
    made = [
        Part(data, sorted(part.tolist()), name)
        for part, name in zip(np.split(order, cuts), names, strict=True)
    ]
    return Parts(inputs, made[0], made[1], made[2], batch)


def seen_shapes(
    model: Any, source: Artifact, data: Samples | None, dims: Mapping[str, int], threads: int
) -> tuple[dict[str, tuple[int, ...]], int]:
    """The shape of every tensor on two samples (or as many as a fixed batch), and how many.

    Raises `Unsupported` where the model does not run.
    """
    import onnx

    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    names = [name for node in model.graph.node for name in node.output if name]
    names += [spec.name for spec in source.inputs]
    taps = [onnx.helper.make_node("Shape", [name], [f"{name}//shape"]) for name in names]
    outputs = [
        onnx.helper.make_tensor_value_info(f"{name}//shape", onnx.TensorProto.INT64, None)
        for name in names
    ]
    given = iter(()) if data is None else batches(data, source.inputs, len(data), most=2)
    feeds: Any = next(given, None)
    if feeds is None:
        known = {**source.facts.get("dims", {}), **dims, "batch": 2}
        feeds = example_feeds(source.inputs, known, 0)
    try:
        session = tapped_session(model, taps, outputs, threads)
        found = session.run([f"{name}//shape" for name in names], dict(feeds))
    except ort_errors() as error:
        why = f"the model does not run: {str(error).splitlines()[0]}"
        raise Unsupported("no effect", [Refusal("model", why)], where="prune_channels") from error
    shapes = {name: tuple(map(int, s)) for name, s in zip(names, found, strict=True)}
    first = source.inputs[0].shape
    free = bool(first) and isinstance(first[0], str)
    return {**weights, **shapes}, int(feeds[source.inputs[0].name].shape[0]) if free else 1
