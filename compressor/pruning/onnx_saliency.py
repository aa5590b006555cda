"""How much each group of an ONNX graph loses with its first, second, … channel removed.

The order comes from reconstruction (`onnx_order`); how much a loss there is worth is measured: the
group's readers get re-solved weights at a few widths, and the error of the model's own outputs over
their power is the loss. It compares across layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.pruning.onnx_groups import Group
from compressor.pruning.onnx_linear import (
    Floats,
    Linear,
    Values,
    columns_of,
    grams,
    linears,
    matrix,
)
from compressor.pruning.onnx_order import Problem, output_power, removal_order, resolved
from compressor.pruning.onnx_probe import Probe
from compressor.pruning.onnx_units import Cut, Trace
from compressor.quantization.reconstruction_taps import Data

WIDTHS = (0.125, 0.375, 0.75)  # shares of a group's channels removed, to measure at


@dataclass
class Readers:
    """The layers that read channels, with the Gram matrix of their inputs where it is known."""

    model: Any
    trace: Trace
    layers: dict[str, Linear]
    grams: dict[str, Floats] = field(default_factory=dict)

    def problem(self, cut: Cut, group: Group) -> Problem:
        """What a reader loses with the group's channels; without a matrix, its weights count."""
        values, tensors = Values(self.model), {t.name: t for t in self.model.graph.initializer}
        layer = self.layers.get(cut.tensor)
        gram = self.grams.get(cut.tensor)
        if layer is None or gram is None:
            from onnx import numpy_helper

            node = next(n for n in self.model.graph.node if n.name == cut.node)
            whole = numpy_helper.to_array(tensors[cut.tensor])
            weight = matrix(node, whole).astype(np.float64)
            gram = np.zeros((len(weight), 0, 0))
        else:
            node, weight = layer.node, values.get(layer)
        shape = list(tensors[cut.tensor].dims)
        columns = group_columns(self.trace, cut, columns_of(node, shape, cut.axis), group)
        biased = layer is not None and layer.bias is not None
        power = output_power(weight, gram, biased) if gram.size else float((weight**2).sum())
        return Problem(weight, gram, columns, max(power, 1e-30))

    def without(self, cut: Cut, gone: set[int]) -> dict[str, Any]:
        """The reader's weight (and bias) with those channels at zero, the others re-solved."""
        from onnx import numpy_helper

        tensor = {t.name: t for t in self.model.graph.initializer}[cut.tensor]
        lost = np.asarray([int(r) in gone for r in self.trace.units.roots(cut.ids)], bool)
        layer, gram = self.layers.get(cut.tensor), self.grams.get(cut.tensor)
        if layer is None or gram is None:
            array = numpy_helper.to_array(tensor).copy()
            np.moveaxis(array, cut.axis, 0)[lost] = 0
            return {cut.tensor: array}
        values = Values(self.model)
        weight = values.get(layer)
        left = np.ones(weight.shape[2], bool)
        left[columns_of(layer.node, list(tensor.dims), cut.axis)[lost].ravel()] = False
        return values.arrays(layer, resolved(weight, gram, left))


def group_columns(
    trace: Trace, cut: Cut, columns: NDArray[np.int64], group: Group
) -> list[NDArray[np.int64]]:
    """The columns of each of the group's channels."""
    place = {root: i for i, root in enumerate(group.roots)}
    found: list[list[int]] = [[] for _ in group.roots]
    for index, root in enumerate(trace.units.roots(cut.ids)):
        if int(root) in place:
            found[place[int(root)]] += columns[index].tolist()
    return [np.asarray(c, np.int64) for c in found]


def readers(
    model: Any, trace: Trace, data: Data | None, rows: int, threads: int, seed: int
) -> Readers:
    """Gram matrices of every layer that reads channels; none without data."""
    wanted = {cut.tensor for cut in trace.cuts if cut.role == "in"}
    layers = {layer.weight: layer for layer in linears(model) if layer.weight in wanted}
    found = Readers(model, trace, layers)
    if data is not None:
        for some in grams(model, list(layers.values()), data, rows, threads, seed):
            found.grams.update(some)
    return found


@dataclass(frozen=True)
class Curve:
    """Channels of one group in the order in which they go, and the loss after each."""

    order: tuple[int, ...]
    losses: tuple[float, ...]


def curves(
    found: Readers,
    wanted: Sequence[Group],
    floor: float,
    probe: Probe | None,
    told: Callable[[float, str], None],
) -> dict[str, Curve]:
    """A curve for each group; its scale is measured where there is a `probe`."""
    made = {}
    for number, group in enumerate(wanted):
        told(number / len(wanted), f"what {group.name} can spare")
        cuts = _cuts(found.trace, group)
        problems = [found.problem(cut, group) for cut in cuts]
        width = len(group.roots)
        most = width - max(1, int(np.ceil(width * floor)))
        order, losses = removal_order(problems, width, most)
        if probe is not None and most:
            losses = _measured(found, group, cuts, order, losses, probe)
        made[group.name] = Curve(tuple(order), tuple(losses))
    return made


def _cuts(trace: Trace, group: Group) -> list[Cut]:
    """Readers of the group, each weight once."""
    roots = set(group.roots)
    found = {
        cut.tensor: cut
        for cut in trace.cuts
        if cut.role == "in" and not roots.isdisjoint(trace.units.roots(cut.ids).tolist())
    }
    return list(found.values())


def _measured(
    found: Readers,
    group: Group,
    cuts: Sequence[Cut],
    order: Sequence[int],
    losses: Sequence[float],
    probe: Probe,
) -> list[float]:
    """Losses scaled to the outputs' noise, between the widths measured in proportion."""
    counts = sorted({max(1, min(len(order), round(s * len(group.roots)))) for s in WIDTHS})
    scales = []
    for count in counts:
        gone = {group.roots[i] for i in order[:count]}
        changes: dict[str, Any] = {}
        for cut in cuts:
            changes.update(found.without(cut, gone))
        scales.append(max(probe.noise(changes), 1e-12) / max(losses[count], 1e-12))
    at = np.arange(len(losses))
    scale = np.exp(np.interp(at, counts, np.log(scales)))
    return [float(v) for v in np.maximum.accumulate(np.asarray(losses) * scale)]


def weight_norms(model: Any, trace: Trace, wanted: Sequence[Group]) -> dict[str, Floats]:
    """Squared weights of everything that goes with each channel, each group's mean set to 1."""
    from onnx import numpy_helper

    place = {root: (group.name, i) for group in wanted for i, root in enumerate(group.roots)}
    sums = {group.name: np.zeros(len(group.roots)) for group in wanted}
    tensors: Mapping[str, Any] = {t.name: t for t in model.graph.initializer}
    for cut in trace.cuts:
        if cut.role == "pass":
            continue
        values = numpy_helper.to_array(tensors[cut.tensor]).astype(np.float64)
        norms = np.moveaxis(values, cut.axis, 0).reshape(len(cut.ids), -1) ** 2
        for root, norm in zip(trace.units.roots(cut.ids), norms.sum(axis=1), strict=True):
            if int(root) in place:
                name, i = place[int(root)]
                sums[name][i] += norm
    return {name: total / max(float(total.mean()), 1e-30) for name, total in sums.items()}
