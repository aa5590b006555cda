"""`prune_channels` on a torch module: groups, saliency, allocation, removal, statistics.

Coupled channels come from torch-pruning's dependency graph. Batch-norm statistics are re-estimated
on data afterwards where that helps; `recover` then trains what is left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from compressor.modules import load_module, reference_of, write_module
from compressor.pruning import costs, effects, graph, latency, saliency, tie
from compressor.pruning.budget import LATENCY, Budget, parse_budget
from compressor.pruning.clock import clock
from compressor.pruning.outcome import left, of_original
from compressor.pruning.plan import Kind, Scope, Subject, choose, resolve, score
from compressor.pruning.removal import INNER, remove
from compressor.pruning.select import select
from compressor.sources.torch_io import example_batch, threads
from exporters.base import Env
from runtimes.types import Artifact


def run_module(source: Artifact, options: Any, env: Env) -> Artifact:
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
        parts = [part for group in groups for part in group.parts or (group,)]
        subject = Subject(module, example, parts, source.inputs, data, env.context.seed)
        env.progress(0.2, "estimating saliency")
        best: Kind | None = None if data is None else "taylor"
        kind, scope = resolve(options.saliency, options.scope, best)
        scores, how = score(subject, kind, options.samples)
        groups, scores = tie.aligned(groups, scores)
        subject = replace(subject, groups=groups)
        env.progress(0.3, "choosing widths")
        chosen, notes, timed = _chosen(subject, scores, budget, scope, options, env)
        pruned = copy.deepcopy(module)
        remove(pruned, subject.groups, chosen)
        after = effects.counts(pruned, example)
        effects.check_outputs(module, pruned, example, "prune_channels")
        effects.check_budget(budget, before, after, "prune_channels")
        env.progress(0.7, "re-estimating batch-norm statistics")
        pruned, restored = effects.restored(source.inputs, options.samples, data, module, pruned)
    facts = _facts(source, groups, chosen, before, after) | timed
    told = f"{left(before, after)}; channels removed in {len(facts['removed'])} layers"
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
    options: Any,
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
    timed = timed_subject(subject, scores, budget, scope=scope, floor=options.floor)
    timer = clock(env, options.on or None, partial(_written, subject, env), subject.data)
    return latency.pruned_to_time(timed, budget, timer, options.multiple, env)


def timed_subject(
    subject: Subject, scores: saliency.Saliency, budget: Budget, *, scope: Scope, floor: float
) -> latency.Subject:
    """`subject` for a budget in time."""

    def shrunk(removal: latency.Removal) -> Any:
        smaller = copy.deepcopy(subject.module)
        remove(smaller, subject.groups, removal)
        return smaller

    return latency.Subject(
        subject.module,
        subject.groups,
        costs.cost_model(subject.module, subject.example, subject.groups, "macs"),
        shrunk,
        lambda model, limit, multiple: choose(
            subject, scores, budget, model, limit, scope=scope, floor=floor, multiple=multiple
        ),
    )


def _written(subject: Subject, env: Env, module: Any, root: Path) -> Artifact:
    factory = reference_of(env.reference) if env.reference.format == "module" else None
    outputs = env.reference.outputs
    return write_module(root, module, subject.inputs, outputs, factory=factory)


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
            elif m.side == "inner" and own:
                removed[f"{m.layer}{INNER}"] = own
    kept = {k: v for k, v in source.facts.items() if k not in ("notes", "removed")}
    return {
        **kept,
        "macs": after["macs"],
        "macs_before": before["macs"],
        "parameters_before": before["params"],
        "removed": of_original(source.facts.get("removed", {}), removed),
    }
