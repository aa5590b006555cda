"""Remove whole channels, so that the module is physically smaller, and say what is left.

Coupled channels come from torch-pruning's dependency graph; which go is a matter of saliency, how
many from where of the allocation, how many in all of `keep`. Batch-norm statistics are
re-estimated on data afterwards; `recover` then trains what is left.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from compressor.modules import load_module, reference_of, write_module
from compressor.pruning import allocate, costs, graph, norms, saliency
from compressor.pruning.budget import Budget, parse_budget
from compressor.torch_io import batch_size, call, example_batch, output_kinds, tensors, threads
from exporters.base import Context, Env, Refusal, Samples
from runtimes.errors import MissingTool, Unsupported, UsageError
from runtimes.types import Artifact

if TYPE_CHECKING:
    from torch import Tensor, nn

Counts = Mapping[costs.Measure, int]

REV = 1
ACCEPTS = frozenset({"module"})
PRODUCES = "module"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"training", "calibration"})


@dataclass(frozen=True)
class Options:
    """What stays and how it is chosen.

    Attributes:
        keep: what stays, exactly one of `macs`, `params` or `bytes`: a fraction of the module
            given to this step ("40%" or 0.4) or an absolute number (30000000 or "30M").
        saliency: `taylor` (from the model's own outputs, needs data, no labels), `l2` (weights
            alone), `random` (a control); `auto` is taylor where there is data, else l2.
        scope: `global` ranks the channels of all layers together; `uniform` keeps about the same
            fraction of every layer.
        floor: the least fraction of its channels that any layer keeps.
        multiple: widths are rounded to it; 0 means the targets' own.
        samples: how many samples saliency is estimated on; batch norms see four times as many.
    """

    keep: Mapping[str, Any] = field(default_factory=lambda: {"macs": "50%"})
    saliency: Literal["auto", "taylor", "l2", "random"] = "auto"
    scope: Literal["global", "uniform"] = "global"
    floor: float = 0.15
    multiple: int = 0
    samples: int = 1024

    def __post_init__(self) -> None:
        parse_budget(self.keep)
        if not 0 <= self.floor < 1 or self.multiple < 0 or self.samples < 1:
            raise UsageError(
                "out of range",
                where="prune_channels",
                expected="0 <= floor < 1, multiple >= 0, samples >= 1",
                got=f"floor {self.floor}, multiple {self.multiple}, samples {self.samples}",
            )


def tools() -> dict[str, str]:
    """torch, torch-pruning and safetensors; MissingTool where one is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {name: version(name) for name in ("torch", "torch-pruning", "safetensors")}
    except PackageNotFoundError as error:
        raise MissingTool(
            f"{error.name} is not installed",
            where="prune_channels",
            fix="pip install 'edge-compressor[torch]'",
        ) from error


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:  # noqa: ARG001
    """Formats that hold no module. Layers are looked at in `run`, once the module is there."""
    if source.format in ACCEPTS:
        return []
    return [
        Refusal(
            source.format,
            f"channels of {_article(source.format)} model cannot be removed",
            "give the torch module (source: 'package.module:function' and weights)",
        )
    ]


def _article(name: str) -> str:
    return {"exported": "an exported (.pt2)", "onnx": "an ONNX"}.get(name, f"a {name}")


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Prune the module in `source` to the budget.

    Raises `Unsupported` naming every layer and reason where nothing can be removed or the module
    cannot be traced, `UsageError` where the budget cannot be met or a `keep` matches nothing.
    """
    budget = parse_budget(options.keep)
    with threads(env.context.threads):
        module = load_module(source, env.factory)
        example = example_batch(source.inputs, env.context.dims, _data(env), env.context.seed)
        before = {m: costs.count(module, example, m) for m in costs.MEASURES}
        env.progress(0.05, "reading which channels go together")
        groups, left_alone = _groups(module, example, env.context.keep.channels)
        notes, chosen = _plan(source, options, env, module, example, groups, budget)
        pruned = copy.deepcopy(module)
        graph.remove(pruned, example, chosen)
        _check_outputs(module, pruned, example)
        after = {m: costs.count(pruned, example, m) for m in costs.MEASURES}
        _check_budget(budget, before, after)
        env.progress(0.7, "re-estimating batch-norm statistics")
        notes += _restore_statistics(source, options, env, pruned)
    facts = _facts(source, groups, chosen, before, after)
    facts["notes"] = [*source.facts.get("notes", []), *_summary(before, after, facts), *notes]
    facts["left_alone"] = [{"layer": r.where, "reason": r.why} for r in left_alone]
    factory, path = reference_of(source)
    return write_module(
        env.work, pruned, source.inputs, source.outputs,
        factory=factory, search_path=path, facts=facts,
    )  # fmt: skip


def _data(env: Env) -> Samples | None:
    """Training data before calibration data: there is more of it."""
    found = env.data.get("training") or env.data.get("calibration")
    return found if found is not None and len(found) else None


# ------------------------------------------------------------------------------ what may go


def _groups(
    module: nn.Module, example: Sequence[Tensor], keep: Sequence[str]
) -> tuple[list[graph.ChannelGroup], list[Refusal]]:
    try:
        found = graph.find_groups(module, example)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError, KeyError) as error:
        raise Unsupported(
            "the module cannot be traced",
            [Refusal(type(module).__name__, f"{type(error).__name__}: {error}")],
            where="prune_channels",
        ) from error
    free, reasons = _without_kept(module, found, keep)
    usable, refused = graph.removable(module, example, free)
    if not usable:
        raise Unsupported("nothing can be pruned", reasons + refused, where="prune_channels")
    return usable, reasons + refused


def _without_kept(
    module: nn.Module, groups: Sequence[graph.ChannelGroup], keep: Sequence[str]
) -> tuple[list[graph.ChannelGroup], list[Refusal]]:
    """`keep` are globs on module names: their output channels stay."""
    names = [name for name, _ in module.named_modules() if name]
    kept = {name for pattern in keep for name in _matches(pattern, names)}
    held = [(g, sorted(kept & set(g.producers))) for g in groups]
    reasons = [Refusal(g.name, f"kept: {', '.join(k)}") for g, k in held if k]
    return [g for g, k in held if not k], reasons


def _matches(pattern: str, names: Sequence[str]) -> list[str]:
    found = [n for n in names if fnmatch.fnmatchcase(n, pattern)]
    if not found:
        close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
        raise UsageError(
            "matches no module",
            where=f"keep.channels {pattern!r}",
            fix=f"did you mean {', '.join(close)}?" if close else f"one of {', '.join(names[:8])}",
        )
    return found


# --------------------------------------------------------------------------- what will go


def _plan(
    source: Artifact,
    options: Options,
    env: Env,
    module: nn.Module,
    example: Sequence[Tensor],
    groups: Sequence[graph.ChannelGroup],
    budget: Budget,
) -> tuple[list[str], dict[str, list[int]]]:
    """Channels to remove by group, and notes on how they were chosen."""
    scores, notes = _saliency(source, options, env, module, example, groups)
    model = costs.cost_model(module, example, groups, budget.measure)
    limit = budget.limit(model({}))
    multiple = options.multiple or env.context.width_multiple
    wanted = multiple
    priority = allocate.by_width if options.scope == "uniform" else allocate.by_saliency
    while True:
        ladders = [allocate.ladder(g, scores[g.name], multiple, options.floor) for g in groups]
        found = allocate.allocate(ladders, model, limit, priority)
        if found is not None:
            break
        if multiple == 1:
            raise _unreachable(model, ladders, budget, limit)
        multiple = max(1, multiple // 2)
    if multiple != wanted:
        notes.append(
            f"widths are multiples of {multiple}, not {wanted}: steps of {wanted} are too "
            f"coarse to meet {budget} within {allocate.TOLERANCE:.0%}"
        )
    return notes, found.indices()


def _unreachable(
    model: costs.CostModel, ladders: Sequence[allocate.Ladder], budget: Budget, limit: float
) -> UsageError:
    full = {one.group.name: one.removed(len(one.counts) - 1) for one in ladders}
    least, whole = model(full), model({})
    return UsageError(
        "the budget cannot be met",
        where=f"prune_channels keep {budget}",
        expected=f"{budget.measure} of about {limit:,.0f}",
        got=f"{least:,.0f} ({least / whole:.0%}) at the least, with every layer at its floor",
        fix="ask to keep more, lower `floor`, or keep fewer layers whole",
    )


def _saliency(
    source: Artifact,
    options: Options,
    env: Env,
    module: nn.Module,
    example: Sequence[Tensor],
    groups: Sequence[graph.ChannelGroup],
) -> tuple[saliency.Saliency, list[str]]:
    data, kind = _data(env), options.saliency
    if kind == "auto":
        kind = "l2" if data is None else "taylor"
    if kind == "random":
        return saliency.random(groups, env.context.seed), ["saliency: random, a control"]
    if kind == "l2":
        why = "" if options.saliency == "l2" else " (no training or calibration data)"
        return saliency.l2(module, groups), [f"saliency: l2 of the weights{why}"]
    if data is None:
        raise UsageError(
            "saliency taylor needs training or calibration data",
            where="prune_channels",
            fix="give data.calibration, or use saliency: l2",
        )
    env.progress(0.15, "estimating saliency")
    kinds = output_kinds(call(module, example), data.labels)
    found = saliency.taylor(
        module, groups, _batches(source, data, options.samples, 64), kinds, env.context.seed
    )
    return found, [f"saliency: taylor on {min(options.samples, len(data))} samples"]


def _batches(
    source: Artifact, data: Samples, samples: int, size: int
) -> Iterator[Sequence[Tensor]]:
    """Up to `samples` samples, evenly taken from all of `data`."""
    count = min(samples, len(data))
    chosen = [i * len(data) // count for i in range(count)]
    for _, feeds in data.batches(batch_size(source.inputs, data, size), chosen):
        yield tensors(source.inputs, feeds)


# ------------------------------------------------------------------------------ afterwards


def _restore_statistics(
    source: Artifact, options: Options, env: Env, module: nn.Module
) -> list[str]:
    data = _data(env)
    if not norms.tracked(module):
        return []
    if data is None or batch_size(source.inputs, data, 128) < 2:
        return ["batch-norm statistics are the original's: no data (in batches) to re-estimate on"]
    before = copy.deepcopy(module.state_dict())
    seen = norms.reestimate(module, _batches(source, data, 4 * options.samples, 128))
    if seen == 0:
        module.load_state_dict(before)
        return ["batch-norm statistics are the original's: no batch of two samples or more"]
    return [f"batch-norm statistics re-estimated on {seen} samples"]


def _check_outputs(module: nn.Module, pruned: nn.Module, example: Sequence[Tensor]) -> None:
    import torch

    with torch.no_grad():
        was, now = ([tuple(o.shape) for o in call(m.eval(), example)] for m in (module, pruned))
    if was != now:
        raise Unsupported(
            f"pruning would change the outputs' shapes from {was} to {now}", where="prune_channels"
        )


def _check_budget(budget: Budget, before: Counts, after: Counts) -> None:
    if after["params"] >= before["params"]:
        raise UsageError(
            "nothing was removed",
            where=f"prune_channels keep {budget}",
            fix="ask to keep less",
        )
    limit = budget.limit(before[budget.measure])
    got = after[budget.measure]
    if abs(got - limit) > allocate.TOLERANCE * limit:
        raise Unsupported(
            f"asked for {limit:,.0f} {budget.measure}, got {got:,}: this module's cost does not "
            "follow its channel counts",
            where="prune_channels",
        )


def _facts(
    source: Artifact,
    groups: Sequence[graph.ChannelGroup],
    chosen: Mapping[str, Sequence[int]],
    before: Counts,
    after: Counts,
) -> dict[str, Any]:
    removed: dict[str, list[int]] = {}
    for group in groups:
        gone = set(chosen.get(group.name, ()))
        for m in group.members:
            own = [o for o, r in zip(m.own, m.root, strict=True) if r in gone]
            if m.side == "out" and own:
                removed[m.layer] = sorted({*removed.get(m.layer, []), *own})
    kept = {k: v for k, v in source.facts.items() if k not in ("notes", "removed")}
    return {
        **kept,
        "macs": after["macs"],
        "macs_before": before["macs"],
        "parameters_before": before["params"],
        "removed": _of_original(source.facts.get("removed", {}), removed),
    }


def _of_original(
    earlier: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    """Indices of the original module's channels, where `earlier` had been removed before."""
    found = {layer: sorted(gone) for layer, gone in earlier.items()}
    for layer, gone in now.items():
        old = set(earlier.get(layer, ()))
        left = [i for i in range(max(gone) + len(old) + 1) if i not in old]
        found[layer] = sorted(old | {left[i] for i in gone})
    return found


def _summary(before: Counts, after: Counts, facts: Mapping[str, Any]) -> list[str]:
    shown: tuple[tuple[costs.Measure, str], ...] = (("macs", "MACs"), ("params", "parameters"))
    shares = [
        f"{name} {before[key]:,} → {after[key]:,} ({after[key] / before[key]:.1%} left)"
        for key, name in shown
        if before[key]
    ]
    return [f"{', '.join(shares)}; channels removed in {len(facts['removed'])} layers"]
