"""A latency-saliency knapsack after HALP, as a step: tables of layers, labels, steps of eight.

After Shen et al., "Structural Pruning via Latency-Saliency Knapsack" (NeurIPS 2022): a channel's
importance is the squared first-order Taylor term of its batch norms under the labelled loss; a
layer's time at each width, its inputs as they stand, comes of a table (here ONNX Runtime, the layer
alone); chunks of `ROUND` channels are chosen by dynamic programming so that importance is largest
within the time. In `rounds` of falling budgets, importance and tables anew each time; the paper
trains between them, here `recover` comes once at the end, as for all rows. A sum of layers misses
what the engine fuses and what a call costs, so its budget is corrected until whole models, timed as
ours are, take the share of the time that was asked for.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.modules import load_module, reference_of, write_module
from compressor.pruning import costs
from compressor.pruning.clock import clock
from compressor.pruning.plan import Subject
from compressor.pruning.removal import remove
from compressor.pruning.select import select
from compressor.sources.torch_io import example_batch, tensors
from exporters.base import Context, Env, Refusal
from runtimes.types import Artifact

REV = 1
ACCEPTS = frozenset({"module"})
PRODUCES = "module"
NEEDS = frozenset({"training"})
USES: frozenset[str] = frozenset()
ROUND, BINS, FLOOR, SAMPLES = 8, 1000, 0.15, 1024
AIMS, CLOSE = 5, 0.03


@dataclass(frozen=True)
class Options:
    """What stays.

    Attributes:
        latency: share of the time of a call that stays.
        rounds: of pruning, to budgets that fall geometrically.
    """

    latency: float = 0.5
    rounds: int = 4


def tools() -> dict[str, str]:
    """The engine of the table."""
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """None."""
    del source, options, context
    return []


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """The module at about `options.latency` of its time, the nearest of `AIMS` attempts."""
    data = env.data["training"]
    module = load_module(source, env.factory).eval()
    example = example_batch(source.inputs, env.context.dims, data, env.context.seed)
    subject = Subject(module, example, (), source.inputs, data, env.context.seed)
    timer, table = clock(subject, env, "onnxruntime"), Table(module, example)
    aim, tried = options.latency, []
    for _ in range(AIMS):
        made = _pruned(subject, table, aim, options.rounds)
        before, after = timer([module, made])
        tried.append((abs(after / before - options.latency), len(tried), made, after / before))
        if tried[-1][0] < CLOSE * options.latency:
            break
        aim *= (options.latency / tried[-1][3]) ** 0.7
    _, _, best, share = min(tried)
    told = f"{share:.1%} of the time, {table.total(best) / table.total(module):.1%} of the table's"
    facts = {"macs": costs.count(best, example, "macs"), "notes": [told]}
    return write_module(
        env.work, best, source.inputs, source.outputs, factory=reference_of(source), facts=facts
    )


def _pruned(subject: Subject, table: Table, share: float, rounds: int) -> Any:
    """A copy at `share` of the table's time."""
    module, whole = copy.deepcopy(subject.module), table.total(subject.module)
    for number in range(1, rounds + 1):
        groups, _ = select(module, subject.example, ())
        scores = _importance(module, groups, subject.inputs, subject.data)
        removal = _knapsack(module, groups, scores, table, whole * share ** (number / rounds))
        removal = {name: gone for name, gone in removal.items() if gone}
        remove(module, groups, removal)
    return module


class Table:
    """Seconds of one convolution by its widths, in ONNX Runtime on one thread."""

    def __init__(self, module: Any, example: Any) -> None:
        import torch

        self.sizes: dict[str, tuple[int, ...]] = {}
        self.known: dict[Any, float] = {}
        layers = {n: m for n, m in module.named_modules() if isinstance(m, torch.nn.Conv2d)}
        hooks = [
            layer.register_forward_hook(
                lambda _, given, __, name=name: self.sizes.update({name: given[0].shape[2:]})
            )
            for name, layer in layers.items()
        ]
        with torch.no_grad():
            module(*example)
        for hook in hooks:
            hook.remove()

    def seconds(self, layer: Any, name: str, out: int) -> float:
        """Of `layer` with `out` channels, its inputs as they are."""
        key = (layer.in_channels, out, layer.kernel_size, layer.stride, self.sizes[name])
        if key not in self.known:
            self.known[key] = _timed(layer, out, self.sizes[name])
        return self.known[key]

    def total(self, module: Any) -> float:
        """Of all convolutions."""
        layers = module.named_modules()
        return sum(self.seconds(m, n, m.out_channels) for n, m in layers if n in self.sizes)


def _timed(layer: Any, out: int, size: tuple[int, ...]) -> float:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shape = (out, layer.in_channels // layer.groups, *layer.kernel_size)
    weight = numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), "w")
    conv = helper.make_node(
        "Conv", ["x", "w"], ["y"], pads=[*layer.padding, *layer.padding],
        strides=list(layer.stride), group=layer.groups,
    )  # fmt: skip
    given = [1, layer.in_channels, *size]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, given)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_model(
        helper.make_graph([conv], "g", [x], [y], [weight]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(made.SerializeToString(), options)
    feeds = {"x": rng.normal(size=given).astype(np.float32)}
    times = []
    for _ in range(30):
        began = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - began)
    return float(np.median(times[5:]))


def _importance(module: Any, groups: Any, inputs: Any, data: Any) -> dict[str, np.ndarray]:
    """Squared first-order Taylor terms at the batch norms, by group and channel."""
    import torch

    model = copy.deepcopy(module).eval()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    found = {g.name: np.zeros(g.width) for g in groups}
    chosen = [i * len(data) // SAMPLES for i in range(SAMPLES)]
    for indices, feeds in data.batches(64, chosen):
        marks = torch.tensor([int(data.labels[i]) for i in indices])
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(*tensors(inputs, feeds)), marks).backward()
        terms = {
            n: (m.weight.grad * m.weight + m.bias.grad * m.bias).square().detach().numpy()
            for n, m in norms.items()
        }
        for group in groups:
            for member in group.members:
                if member.layer in terms:
                    np.add.at(found[group.name], list(member.root), terms[member.layer][
                        list(member.own)])  # fmt: skip
    return found


def _knapsack(
    module: Any, groups: Any, scores: dict[str, np.ndarray], table: Table, budget: float
) -> dict[str, list[int]]:
    """Channels that go: the most importance whose layers' time stays within `budget`."""
    layers = dict(module.named_modules())
    moved = {name for g in groups for name in g.producers}
    fixed = sum(
        table.seconds(layers[n], n, layers[n].out_channels) for n in table.sizes if n not in moved
    )
    unit = max(budget - fixed, 1e-9) / BINS
    best = np.full(BINS + 1, -np.inf)
    best[0] = 0.0
    picks = []
    for group in groups:
        options = _options(group, scores[group.name], table, layers, unit)
        made, pick = np.full(BINS + 1, -np.inf), np.full(BINS + 1, -1)
        for number, (value, cost, _) in enumerate(options):
            if cost > BINS:
                continue
            moved_on = best[: BINS + 1 - cost] + value
            better = moved_on > made[cost:]
            made[cost:] = np.where(better, moved_on, made[cost:])
            pick[cost:] = np.where(better, number, pick[cost:])
        picks.append((options, pick))
        best = made
    if not np.isfinite(best).any():  # the table finds the narrowest too slow already
        return {g.name: _options(g, scores[g.name], table, layers, unit)[0][2] for g in groups}
    at, removal = int(np.argmax(best)), {}
    for group, (options, pick) in zip(reversed(groups), reversed(picks), strict=True):
        _, cost, gone = options[pick[at]]
        removal[group.name], at = gone, at - cost
    return removal


def _options(
    group: Any, scores: np.ndarray, table: Table, layers: Any, unit: float
) -> list[tuple[float, int, list[int]]]:
    """(importance kept, cost in units, channels gone) for every number of chunks."""
    order = np.argsort(scores, kind="stable")
    producers = [n for n in group.producers if n in table.sizes]
    least = max(1, int(np.ceil(group.width * FLOOR)))
    widths = {group.width, *range(-(-least // ROUND) * ROUND, group.width, ROUND)}
    found = []
    for width in sorted(widths):
        gone = order[: group.width - width]
        cost = sum(table.seconds(layers[n], n, width) for n in producers)
        kept = float(scores.sum() - scores[gone].sum())
        found.append((kept, round(cost / unit), sorted(int(i) for i in gone)))
    return found
