"""`prune_channels` on a torch module: groups, saliency, allocation, removal, statistics.

Coupled channels come from torch-pruning's dependency graph. Batch-norm statistics are re-estimated
on data afterwards; `recover` then trains what is left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compressor.modules import load_module, reference_of, write_module
from compressor.pruning import costs, graph, norms
from compressor.pruning.allocate import TOLERANCE
from compressor.pruning.budget import Budget, parse_budget
from compressor.pruning.outcome import of_original, summary
from compressor.pruning.plan import Subject, choose, resolve, score
from compressor.pruning.select import select
from compressor.sources.torch_io import batch_size, batches, call, example_batch, threads
from exporters.base import Env, Samples
from runtimes.errors import Unsupported, UsageError
from runtimes.types import Artifact

if TYPE_CHECKING:
    from torch import Tensor, nn

Counts = Mapping[costs.Measure, int]


def run_module(source: Artifact, options: Any, env: Env) -> Artifact:
    """Prune the module in `source` to the budget.

    Raises `Unsupported` naming every layer and reason where nothing can be removed or the module
    cannot be traced, `UsageError` where the budget cannot be met or a `keep` matches nothing.
    """
    budget = parse_budget(options.keep)
    with threads(env.context.threads):
        module = load_module(source, env.factory)
        data = _data(env)
        example = example_batch(source.inputs, env.context.dims, data, env.context.seed)
        before = _counts(module, example)
        env.progress(0.05, "reading which channels go together")
        groups, left_alone = select(module, example, env.context.keep.channels)
        subject = Subject(module, example, groups, source.inputs, data, env.context.seed)
        env.progress(0.2, "estimating saliency")
        kind, scope = resolve(options.saliency, options.scope, data is not None)
        scores, how = score(subject, kind, options.samples)
        chosen, notes = choose(
            subject, scores, budget, scope=scope, floor=options.floor,
            multiple=options.multiple or env.context.width_multiple,
        )  # fmt: skip
        pruned = copy.deepcopy(module)
        graph.remove(pruned, example, chosen)
        after = _counts(pruned, example)
        _check_outputs(module, pruned, example)
        _check_budget(budget, before, after)
        env.progress(0.7, "re-estimating batch-norm statistics")
        notes = [how, *notes, *_restore_statistics(source, options, data, pruned)]
    facts = _facts(source, groups, chosen, before, after)
    facts["notes"] = [*source.facts.get("notes", []), *summary(facts), *notes]
    facts["left_alone"] = [{"layer": r.where, "reason": r.why} for r in left_alone]
    factory = reference_of(source)
    return write_module(
        env.work, pruned, source.inputs, source.outputs,
        factory=factory, facts=facts,
    )  # fmt: skip


def _data(env: Env) -> Samples | None:
    """Training data before calibration data: there is more of it."""
    found = env.data.get("training") or env.data.get("calibration")
    return found if found is not None and len(found) else None


def _counts(module: nn.Module, example: Sequence[Tensor]) -> Counts:
    return {m: costs.count(module, example, m) for m in costs.MEASURES}


def _restore_statistics(
    source: Artifact, options: Any, data: Samples | None, module: nn.Module
) -> list[str]:
    if not norms.tracked(module):
        return []
    if data is None or batch_size(source.inputs, data, 128) < 2 or len(data) < 2:
        return ["batch-norm statistics are the original's: no data (in batches) to re-estimate on"]
    seen = norms.reestimate(module, batches(source.inputs, data, 4 * options.samples, 128))
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
    if abs(got - limit) > TOLERANCE * limit:
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
        "parameters": after["params"],
        "parameters_before": before["params"],
        "removed": of_original(source.facts.get("removed", {}), removed),
    }
