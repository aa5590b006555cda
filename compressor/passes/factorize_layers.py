"""Replace large linear and convolution layers by two smaller ones each, of low rank.

What a pair of given rank loses is told by the layer's outputs on data; which layer gets which rank,
by that loss for what it saves, until `keep` is met. `recover` then trains what is left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compressor.factorization import pairs, ranks
from compressor.factorization.candidates import Candidate, select
from compressor.factorization.spectrum import Spectrum, collect, of_data, of_weights, pair_of
from compressor.modules import load_module, reference_of, write_module
from compressor.pruning import allocate, effects
from compressor.pruning.allocate import TOLERANCE
from compressor.pruning.budget import Budget, check_widths, parse_budget
from compressor.pruning.outcome import article, left
from compressor.pruning.source import patterned
from compressor.sources.torch_io import batches, example_batch, threads
from exporters.base import Context, Env, Refusal, Samples, installed
from runtimes.errors import Unsupported, UsageError
from runtimes.types import Artifact

if TYPE_CHECKING:
    from torch import nn

REV = 2
ACCEPTS = frozenset({"module"})
PRODUCES = "module"
NEEDS: frozenset[str] = frozenset()
USES = frozenset({"training", "calibration"})


@dataclass(frozen=True)
class Options:
    """What stays and how ranks are chosen.

    Attributes:
        keep: what stays, exactly one of `macs`, `params` or `bytes`: a fraction of the module
            given to this step ("60%" or 0.6) or an absolute number (30000000 or "30M").
        floor: the least fraction of its full rank that any layer keeps.
        multiple: ranks are multiples of it; 0 means the targets' own.
        samples: how many samples spectra are taken from; batch norms see four times as many.
    """

    keep: Mapping[str, Any] = field(default_factory=lambda: {"macs": "60%"})
    floor: float = 0.05
    multiple: int = 0
    samples: int = 1024

    def __post_init__(self) -> None:
        parse_budget(self.keep).counted("factorize_layers")
        check_widths(self, "factorize_layers")


def tools() -> dict[str, str]:
    """Torch and safetensors; MissingTool where one is not installed."""
    return installed(
        ("torch", "safetensors"), "factorize_layers", "pip install 'edge-compressor[torch]'"
    )


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:  # noqa: ARG001
    """Formats that hold no module. Layers are looked at in `run`, once the module is there."""
    if source.format in ACCEPTS:
        return []
    return [
        Refusal(
            source.format,
            f"layers of {article(source.format)} model cannot be factorized",
            "give the torch module (source: 'package.module:function' and weights)",
        )
    ]


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """Factorize layers of the module in `source` until it meets the budget.

    Raises `Unsupported` naming every layer and reason where none can be factorized or weights have
    a pattern, `UsageError` where the budget cannot be met or a `keep` matches nothing.
    """
    if zeros := patterned(source, "put factorize_layers before prune_pattern"):
        raise Unsupported("its zeros would be lost", zeros, where="factorize_layers")
    budget = parse_budget(options.keep)
    with threads(env.context.threads):
        module = load_module(source, env.factory)
        data = effects.data_of(env)
        example = example_batch(source.inputs, env.context.dims, data, env.context.seed)
        before = effects.counts(module, example)
        budget.limit(before[budget.counted("factorize_layers")])
        env.progress(0.05, "reading which layers can be factorized")
        found, left_alone = select(module, example, env.context.keep.channels)
        env.progress(0.2, "what the layers' outputs carry")
        spectra, how = _spectra(source, options, env, data, module, found)
        chosen, notes = _choose(
            found, spectra, budget, before,
            floor=options.floor, multiple=options.multiple or env.context.width_multiple,
        )  # fmt: skip
        smaller = _replaced(module, found, spectra, chosen)
        after = effects.counts(smaller, example)
        effects.check_outputs(module, smaller, example, "factorize_layers")
        effects.check_budget(budget, before, after, "factorize_layers")
        env.progress(0.8, "re-estimating batch-norm statistics")
        smaller, restored = effects.restored(source.inputs, options.samples, data, module, smaller)
    facts = _facts(source, chosen, before, after)
    told = f"{left(before, after)}; {_told(chosen, found, spectra)}"
    facts["notes"] = [*source.facts.get("notes", []), told, how, *notes, *restored]
    facts["left_alone"] = [{"layer": r.where, "reason": r.why} for r in left_alone]
    return write_module(
        env.work, smaller, source.inputs, source.outputs, factory=reference_of(source), facts=facts
    )


def _spectra(
    source: Artifact,
    options: Options,
    env: Env,
    data: Samples | None,
    module: nn.Module,
    found: Sequence[Candidate],
) -> tuple[dict[str, Spectrum], str]:
    """The spectrum of every candidate, and a note on what it was taken from."""
    if data is None:
        how = "ranks by the weights' singular values alone (no training or calibration data)"
        return {one.name: of_weights(one.layer) for one in found}, how
    given = batches(source.inputs, data, options.samples, 64)
    seen = collect(module, found, given, env.context.seed)
    spectra = {
        one.name: of_data(one.layer, seen[one.name]) if one.name in seen else of_weights(one.layer)
        for one in found
    }
    return spectra, f"ranks by the layers' outputs on {min(options.samples, len(data))} samples"


def _choose(
    found: Sequence[Candidate],
    spectra: Mapping[str, Spectrum],
    budget: Budget,
    before: effects.Counts,
    *,
    floor: float,
    multiple: int,
) -> tuple[dict[str, int], list[str]]:
    """Name → rank, and notes; `multiple` is halved until its steps fit the budget, which is said.

    Raises `UsageError` where no ranks meet the budget.
    """
    measure = budget.counted("factorize_layers")
    whole = float(before[measure])
    limit = budget.limit(whole)
    fixed = whole - sum(one.price[measure] for one in found)

    def offers(step: int) -> list[ranks.Offer]:
        return [
            ranks.offer(
                one.name, spectra[one.name].energies, most=one.most, floor=floor, multiple=step,
                cost=one.price[measure], per_rank=one.per_rank[measure],
            )
            for one in found
        ]  # fmt: skip

    chosen, notes = allocate.in_steps(
        multiple, lambda step: ranks.allocate(offers(step), fixed, limit), "ranks", budget
    )
    if chosen is None:
        raise _unmet(ranks.least(offers(1), fixed), whole, budget, limit)
    return chosen, notes


def _unmet(least: float, whole: float, budget: Budget, limit: float) -> UsageError:
    got = f"{least:,.0f} ({least / whole:.0%}) at the least, with every layer at its floor"
    fix = "ask to keep more, lower `floor`, or keep fewer layers whole"
    if least <= limit:
        got = f"no ranks that come within {TOLERANCE:.0%} of it: one more or less costs more"
        fix = "ask for another amount, or use prune_channels"
    return UsageError(
        "the budget cannot be met",
        where=f"factorize_layers keep {budget}",
        expected=f"{budget.measure} of about {limit:,.0f}",
        got=got,
        fix=fix,
    )


def _replaced(
    module: nn.Module,
    found: Sequence[Candidate],
    spectra: Mapping[str, Spectrum],
    chosen: Mapping[str, int],
) -> nn.Module:
    smaller = copy.deepcopy(module)
    for one in found:
        if one.name in chosen:
            pair = pair_of(one.layer, spectra[one.name], chosen[one.name])
            pairs.put(smaller, one.name, pair)
    return smaller


def _told(
    chosen: Mapping[str, int], found: Sequence[Candidate], spectra: Mapping[str, Spectrum]
) -> str:
    rows = [
        f"{one.name} {chosen[one.name]} of {one.full} "
        f"({spectra[one.name].lost(chosen[one.name]):.1%} lost)"
        for one in found
        if one.name in chosen
    ]
    return f"rank and share of the outputs' energy lost in {len(rows)} layers: {', '.join(rows)}"


def _facts(
    source: Artifact, chosen: Mapping[str, int], before: effects.Counts, after: effects.Counts
) -> dict[str, Any]:
    """A layer's removed channels are those of its pair's `expand` from now on."""
    gone = {f"{name}.reduce" for name in chosen}
    removed = {
        f"{layer}.expand" if layer in chosen else layer: channels
        for layer, channels in source.facts.get("removed", {}).items()
        if layer not in gone
    }
    return {
        **source.facts,
        **({"removed": removed} if removed else {}),
        "macs": after["macs"],
        "macs_before": before["macs"],
        "parameters_before": before["params"],
    }
