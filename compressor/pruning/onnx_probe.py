"""What changed weights do to a model's outputs: one session that takes the weights as inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from exporters._onnx_graph import drop
from exporters._onnx_session import tapped_session
from runtimes.base import Feeds

Arrays = Mapping[str, Any]


class Probe:
    """`model` on a few samples, some of its weights replaceable.

    `noise` is the error of the outputs over their power around the samples' mean, averaged over
    the outputs.
    """

    def __init__(
        self, model: Any, names: Collection[str], feeds: Sequence[Feeds], threads: int
    ) -> None:
        import onnx

        given = {t.name: t for t in model.graph.initializer if t.name in names}
        self.weights = {name: onnx.numpy_helper.to_array(t) for name, t in given.items()}
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        drop(copy.graph.initializer, lambda tensor: tensor.name in given)
        copy.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in given.values()
        )
        self.session = tapped_session(copy, (), model.graph.output, threads)
        self.names = [value.name for value in model.graph.output]
        self.feeds = list(feeds)
        self.wanted = [self._run(batch, {}) for batch in self.feeds]
        self.power = powers(self.wanted)

    def _run(self, batch: Feeds, changes: Arrays) -> list[Any]:
        return list(self.session.run(self.names, {**batch, **self.weights, **changes}))

    def noise(self, changes: Arrays) -> float:
        """Of the model with these weights, 0 where it computes the same."""
        made = (self._run(batch, changes) for batch in self.feeds)
        return share(self.wanted, made, self.power)


def powers(outputs: Sequence[Sequence[Any]]) -> list[float]:
    """Power of each float output around its mean over the samples; 0 for all others."""
    found = []
    for values in zip(*outputs, strict=True):
        if values[0].dtype.kind != "f":
            found.append(0.0)
            continue
        count = sum(len(v) for v in values) if values[0].ndim else 1
        shapes = {v.shape[1:] for v in values}
        square = sum(float((v.astype(np.float64) ** 2).sum()) for v in values)
        if len(shapes) == 1 and values[0].ndim and count > 1:
            mean = np.sum([v.astype(np.float64).sum(axis=0) for v in values], axis=0) / count
            square -= count * float((mean**2).sum())
        found.append(max(square, 1e-30))
    return found


def share(
    wanted: Iterable[Sequence[Any]], made: Iterable[Sequence[Any]], power: Sequence[float]
) -> float:
    """Error over power, averaged over the float outputs."""
    noise = np.zeros(len(power))
    for first, second in zip(wanted, made, strict=True):
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            if power[i]:
                noise[i] += float(((a.astype(np.float64) - b) ** 2).sum())
    shares = [n / p for n, p in zip(noise, power, strict=True) if p]
    return float(np.mean(shares)) if shares else 0.0
