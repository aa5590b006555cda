"""Replace large linear and convolution layers by two smaller ones each, of low rank.

What a pair of given rank loses is told by the layer's outputs on data, what that is worth by the
module's; which layer gets which rank, by that loss for what it saves, until `keep` is met.
`recover` then trains what is left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from compressor.factorization import joint, pairs, ranks
from compressor.factorization.candidates import Candidate, select
from compressor.factorization.spectrum import Spectrum, collect, of_data, of_weights, pair_of
from compressor.factorization.stakes import SAMPLES, stakes
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
    from torch import Tensor, nn

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
        channels: `auto` also lets `prune_channels`' way make none, a quarter or half of the saving
            first, and keeps the split that moves the outputs least on data.
    """

    keep: Mapping[str, Any] = field(default_factory=lambda: {"macs": "60%"})
    floor: float = 0.05
    multiple: int = 0
    samples: int = 1024
    channels: Literal["none", "auto"] = "none"

    def __post_init__(self) -> None:
        parse_budget(self.keep).counted("factorize_layers")
        check_widths(self, "factorize_layers")


def tools() -> dict[str, str]:
    """What reads and writes modules, and the pruner; MissingTool where one is not installed."""
    needed = ("torch", "torch-pruning", "safetensors")
    return installed(needed, "factorize_layers", "pip install 'edge-compressor[torch]'")


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
    a pattern, `UsageError` where the budget cannot be met, a `keep` matches nothing, or a split
    with channels is to be measured without data.
    """
    if zeros := patterned(source, "put factorize_layers before prune_pattern"):
        raise Unsupported("its zeros would be lost", zeros, where="factorize_layers")
    budget = parse_budget(options.keep)
    measure = budget.counted("factorize_layers")
    with threads(env.context.threads):
        module = load_module(source, env.factory)
        data = effects.data_of(env)
        example = example_batch(source.inputs, env.context.dims, data, env.context.seed)
        before = effects.counts(module, example)
        limit = budget.limit(before[measure])
        subject = _Subject(source, module, example, before, data, budget, limit)
        if options.channels == "none":
            made = _factorized(subject, source, options, env)
        elif data is None:
            raise UsageError(
                "how much channels are to save is measured on data, and none is given",
                where="factorize_layers.channels", fix="add data.calibration, or say none",
            )  # fmt: skip
        else:
            made = joint.least_moved(
                module, source, data, options.samples,
                lambda share: _split(subject, share, options, env),
            )  # fmt: skip
    return write_module(
        env.work, made.module, source.inputs, source.outputs,
        factory=reference_of(source), facts=made.facts,
    )  # fmt: skip


@dataclass(frozen=True)
class _Subject:
    """The module given to the step, and what is to become of it."""

    source: Artifact
    module: nn.Module
    example: Sequence[Tensor]
    before: effects.Counts
    data: Samples | None
    budget: Budget
    limit: float


def _split(subject: _Subject, share: float, options: Options, env: Env) -> joint.Made:
    """Channels make `share` of the saving, ranks the rest."""
    start, measure = subject.source, subject.budget.counted("factorize_layers")
    if share:
        fraction = (subject.limit / subject.before[measure]) ** share
        start = joint.narrowed(start, measure, fraction, options, env)
    return _factorized(subject, start, options, env)


def _factorized(subject: _Subject, start: Artifact, options: Options, env: Env) -> joint.Made:
    """The module in `start`, of `subject` or made from it, with layers factorized."""
    given = start is subject.source
    module = subject.module if given else load_module(start, env.factory)
    data, budget = subject.data, subject.budget
    env.progress(0.05, "reading which layers can be factorized")
    found, left_alone = select(module, subject.example, env.context.keep.channels)
    env.progress(0.2, "what the layers' outputs carry")
    spectra, how = _spectra(start, options, env, data, module, found)
    weights = _weights(start, env, data, module, found, spectra)
    chosen, notes = _choose(
        found, spectra, weights, budget, effects.counts(module, subject.example), subject.limit,
        floor=options.floor, multiple=options.multiple or env.context.width_multiple,
    )  # fmt: skip
    smaller = _replaced(module, found, spectra, chosen)
    after = effects.counts(smaller, subject.example)
    effects.check_outputs(subject.module, smaller, subject.example, "factorize_layers")
    effects.check_budget(budget, subject.before, after, "factorize_layers")
    env.progress(0.8, "re-estimating batch-norm statistics")
    smaller, restored = effects.restored(
        start.inputs, options.samples, data, subject.module, smaller
    )
    facts = _facts(start, chosen, subject.before, after)
    told = f"{left(subject.before, after)}; {_told(chosen, found, spectra)}"
    facts["notes"] = [*start.facts.get("notes", []), told, how, *notes, *restored]
    facts["left_alone"] = [{"layer": r.where, "reason": r.why} for r in left_alone]
    return joint.Made(smaller, facts)


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
    how = f"ranks by the layers' outputs on {min(options.samples, len(data))} samples, weighed by"
    return spectra, f"{how} what the module's lose on {min(SAMPLES, len(data))}"


def _weights(
    source: Artifact,
    env: Env,
    data: Samples | None,
    module: nn.Module,
    found: Sequence[Candidate],
    spectra: Mapping[str, Spectrum],
) -> Mapping[str, float]:
    """How much a share of each layer's energy is worth; alike where there is no data."""
    if data is None:
        return {one.name: 1.0 for one in found}
    given = list(batches(source.inputs, data, SAMPLES, SAMPLES))

    def told(share: float, layer: str) -> None:
        env.progress(0.3 + 0.5 * share, f"what the outputs lose by {layer}")

    return stakes(module, found, spectra, given, told)


def _choose(
    found: Sequence[Candidate],
    spectra: Mapping[str, Spectrum],
    weights: Mapping[str, float],
    budget: Budget,
    counts: effects.Counts,
    limit: float,
    *,
    floor: float,
    multiple: int,
) -> tuple[dict[str, int], list[str]]:
    """Name → rank, and notes; `multiple` is halved until its steps fit the budget, which is said.

    Raises `UsageError` where no ranks meet the budget.
    """
    measure = budget.counted("factorize_layers")
    whole = float(counts[measure])
    fixed = whole - sum(one.price[measure] for one in found)

    def offers(step: int) -> list[ranks.Offer]:
        return [
            ranks.offer(
                one.name, spectra[one.name].energies, most=one.most, floor=floor, multiple=step,
                cost=one.price[measure], per_rank=one.per_rank[measure], weight=weights[one.name],
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
