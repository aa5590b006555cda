"""Remove whole channels, so that the module is physically smaller, and say what is left.

Coupled channels come from torch-pruning's dependency graph; which go is a matter of saliency, how
many from where of the allocation, how many in all of `keep`: counted, or as time measured on the
target. Batch-norm statistics are re-estimated on data afterwards; `recover` then trains what is
left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compressor.modules import load_module, reference_of, write_module
from compressor.pruning import costs, effects, graph, latency, saliency
from compressor.pruning.budget import LATENCY, Budget, parse_budget
from compressor.pruning.clock import clock
from compressor.pruning.plan import Kind, Scope, Subject, choose, resolve, score
from compressor.pruning.select import select
from compressor.sources.torch_io import example_batch, threads
from exporters.base import Context, Env, Refusal, installed
from runtimes.errors import UsageError
from runtimes.types import Artifact

REV = 2
ACCEPTS = frozenset({"module"})
PRODUCES = "module"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"training", "calibration"})


@dataclass(frozen=True)
class Options:
    """What stays and how it is chosen.

    Attributes:
        keep: what stays, exactly one of `macs`, `params`, `bytes` or `latency`: a fraction of the
            module given to this step ("40%" or 0.4) or an absolute number (30000000 or "30M"; "2ms"
            of latency, one call at the smallest batch).
        on: the target that `latency` is measured on, in a shared list: as its float model. In a
            target's own list, models are timed as the rest of that list makes them.
        saliency: `taylor` (at the channels' gates) and `hessian` (of the weights, Optimal Brain
            Damage) expand the model's own outputs: they need data, no labels; `l2` and `lamp` look
            at weights alone; `random` is a control. `auto` is taylor where there is data, else l2.
        scope: `global` ranks the channels of all layers together; `uniform` keeps about the same
            fraction of every layer; `auto` is uniform for l2 and random, else global.
        floor: the least fraction of its channels that any layer keeps.
        multiple: widths are rounded to it; 0 means the targets' own, or what timing shows to be
            enough.
        samples: how many samples saliency is estimated on; batch norms see four times as many.
    """

    keep: Mapping[str, Any] = field(default_factory=lambda: {"macs": "50%"})
    on: str = ""
    saliency: Kind = "auto"
    scope: Scope = "auto"
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
    return installed(
        ("torch", "torch-pruning", "safetensors"),
        "prune_channels",
        "pip install 'edge-compressor[torch]'",
    )


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:  # noqa: ARG001
    """Formats that hold no module. Layers are looked at in `run`, once the module is there."""
    if source.format in ACCEPTS:
        return []
    return [
        Refusal(
            source.format,
            f"channels of {effects.article(source.format)} model cannot be removed",
            "give the torch module (source: 'package.module:function' and weights)",
        )
    ]


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Prune the module in `source` to the budget.

    Raises `Unsupported` naming every layer and reason where nothing can be removed or the module
    cannot be traced, `UsageError` where the budget cannot be met or a `keep` matches nothing.
    """
    budget = parse_budget(options.keep)
    with threads(env.context.threads):
        module = load_module(source, env.factory)
        data = effects.data_of(env)
        example = example_batch(source.inputs, env.context.dims, data, env.context.seed)
        before = effects.counts(module, example)
        env.progress(0.05, "reading which channels go together")
        groups, left_alone = select(module, example, env.context.keep.channels)
        subject = Subject(module, example, groups, source.inputs, data, env.context.seed)
        env.progress(0.2, "estimating saliency")
        kind, scope = resolve(options.saliency, options.scope, data is not None)
        scores, how = score(subject, kind, options.samples)
        env.progress(0.3, "choosing widths")
        chosen, notes, timed = _chosen(subject, scores, budget, scope, options, env)
        pruned = copy.deepcopy(module)
        graph.remove(pruned, example, chosen)
        after = effects.counts(pruned, example)
        effects.check_outputs(module, pruned, example, "prune_channels")
        effects.check_budget(budget, before, after, "prune_channels")
        env.progress(0.7, "re-estimating batch-norm statistics")
        restored = effects.restore_statistics(source.inputs, 4 * options.samples, data, pruned)
    facts = _facts(source, groups, chosen, before, after) | timed
    told = f"{effects.left(before, after)}; channels removed in {len(facts['removed'])} layers"
    facts["notes"] = [*source.facts.get("notes", []), told, how, *notes, *restored]
    facts["left_alone"] = [{"layer": r.where, "reason": r.why} for r in left_alone]
    factory = reference_of(source)
    return write_module(
        env.work, pruned, source.inputs, source.outputs,
        factory=factory, facts=facts,
    )  # fmt: skip


def _chosen(
    subject: Subject,
    scores: saliency.Saliency,
    budget: Budget,
    scope: Scope,
    options: Options,
    env: Env,
) -> tuple[Mapping[str, Sequence[int]], list[str], dict[str, Any]]:
    """Channels that go, notes, and what was measured for it."""
    usual = env.context.width_multiple
    if budget.measure != LATENCY:
        model = costs.cost_model(subject.module, subject.example, subject.groups, budget.measure)
        chosen, notes = choose(
            subject, scores, budget, model, budget.limit(model({})),
            scope=scope, floor=options.floor, multiple=options.multiple or usual,
        )  # fmt: skip
        return chosen, notes, {}
    timer = clock(subject, env, options.on or None)
    learned = latency.learn(subject, timer, options.multiple, usual)
    env.progress(0.6, learned.note())
    met = latency.meet(subject, scores, budget, learned, timer, scope=scope, floor=options.floor)
    told = (
        f"latency {met.before_ns / 1e6:.3g} → {met.after_ns / 1e6:.3g} ms, "
        f"{met.before_ns / met.after_ns:.2f} times as fast"
    )
    measured = {
        "before_ns": round(met.before_ns),
        "after_ns": round(met.after_ns),
        "fixed": round(learned.fixed, 3),
        "error": round(learned.error, 4),
        "multiple": learned.multiple,
        "builds": learned.builds,
    }
    facts = {"latency": measured, "not_reproducible": "prune_channels chose by measured times"}
    return met.removal, [*met.notes, learned.note(), told], facts


def _facts(
    source: Artifact,
    groups: Sequence[graph.ChannelGroup],
    chosen: Mapping[str, Sequence[int]],
    before: effects.Counts,
    after: effects.Counts,
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
