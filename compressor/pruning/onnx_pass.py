"""`prune_channels` on an ONNX graph: trace, choose, remove, check, repair, write.

No training code and no labels: channels are followed through the graph itself, what each is worth
and how the rest makes up for it come from calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.pruning import allocate, latency, saliency
from compressor.pruning.budget import LATENCY, Budget, parse_budget
from compressor.pruning.clock import clock
from compressor.pruning.costs import CostModel, Measure
from compressor.pruning.effects import data_of
from compressor.pruning.onnx_data import LEAST, Parts, batch_for, enough, parts, seen_shapes
from compressor.pruning.onnx_groups import Group, cost_model, groups, masked, removed
from compressor.pruning.onnx_linear import add_biases, drop_zero_biases
from compressor.pruning.onnx_probe import Probe, powers, share
from compressor.pruning.onnx_repair import Pair, repair
from compressor.pruning.onnx_saliency import WIDTHS, Curve, Readers, curves, readers, weight_norms
from compressor.pruning.onnx_trace import Shape, join_constants, own_constants, trace
from compressor.pruning.onnx_units import Trace
from compressor.pruning.outcome import left, of_original
from compressor.pruning.plan import Kind, Scope, fitted, resolve
from compressor.quantization.blas import one_blas_thread
from exporters._onnx_graph import count_parameters, load_model, save_model
from exporters._onnx_macs import by_node
from exporters._onnx_session import check_model, session_of
from exporters.base import Env, Samples
from runtimes.base import Feeds
from runtimes.errors import BuildFailed, Refusal, Unsupported, UsageError
from runtimes.types import Artifact

_READING = 3 * 10**10  # multiply-accumulates to spend on what layers see
_MEASURING = 4 * 10**11  # on measuring what groups can spare
_REPAIRING = 5 * 10**11  # and on repairing
_TOLERANCE = 1e-3  # between the graph without channels and the one that does not read them


@dataclass(frozen=True)
class Job:
    """What is pruned, with what was learned of it."""

    model: Any
    trace: Trace
    shapes: Mapping[str, Shape]
    samples: int
    groups: Sequence[Group]
    parts: Parts | None
    env: Env

    @property
    def macs(self) -> float:
        """Of one sample."""
        return sum(c for _, c in by_node(self.model.graph, self.shapes)) / self.samples

    def cost(self, measure: Measure) -> CostModel:
        """How `measure` depends on what is removed."""
        return cost_model(self.model, self.trace, self.groups, self.shapes, measure, self.samples)


@one_blas_thread()
def run_onnx(source: Artifact, options: Any, env: Env) -> Artifact:
    """Prune the graph in `source` to the budget and repair it.

    Raises `Unsupported` naming every layer and reason where nothing can be removed, `UsageError`
    where the budget cannot be met or a `keep` matches nothing, `BuildFailed` where removing
    channels would change more than those channels.
    """
    from exporters._drop_in import require_drop_in

    budget = parse_budget(options.keep)
    model = load_model(source.path)
    before = count_parameters(model)
    copies, biases = own_constants(model), add_biases(model)
    job, left_alone = _job(model, source, options, env)
    aim = _aim(job, options, budget)
    seen = _readers(job, options)
    chosen, notes, timed = _choose(job, source, seen, options, aim)
    gone = _roots(job, chosen)
    made, more = _made(job, seen, gone, options)
    drop_zero_biases(made, biases)
    join_constants(made, copies)
    check_model(made)
    save_model(made, env.work / source.entry)
    after = count_parameters(made)
    facts = _facts(source, job, chosen, (before, after)) | timed
    was: Mapping[Measure, int] = {"macs": facts["macs_before"], "params": before}
    now: Mapping[Measure, int] = {"macs": facts["macs"], "params": after}
    told = f"{left(was, now)}; channels removed in {len(facts['removed'])} layers"
    facts["notes"] = [*source.facts.get("notes", []), told, *notes, *more]
    facts["left_alone"] = [{"layer": r.where, "reason": r.why} for r in left_alone]
    artifact = Artifact.write(
        env.work, source.format, source.entry, source.inputs, source.outputs, facts
    )
    return require_drop_in(source, artifact)


def _job(model: Any, source: Artifact, options: Any, env: Env) -> tuple[Job, list[Refusal]]:
    data = data_of(env)
    shapes, samples = seen_shapes(model, source, data, env.context.dims, env.context.threads)
    found = trace(model, shapes)
    usable, refused = groups(found, env.context.keep.channels)
    if not usable:
        raise Unsupported("nothing can be pruned", refused, where="prune_channels")
    split = None
    if data is not None and enough(source.inputs, data, options.samples):
        made = {name for node in model.graph.node for name in node.output if name}
        size = 4 * sum(float(np.prod(shapes[name])) for name in made) / samples
        split = parts(source.inputs, data, options.samples, env.context.seed, batch_for(size))
    return Job(model, found, shapes, samples, usable, split, env), refused


@dataclass(frozen=True)
class _Aim:
    """What to come down to, and by what; the cost and its limit where it is counted, not timed."""

    budget: Budget
    counted: tuple[CostModel, float] | None
    kind: Kind
    scope: Scope


def _aim(job: Job, options: Any, budget: Budget) -> _Aim:
    """`UsageError` before the work where the budget removes nothing or saliency lacks data."""
    data = job.parts is not None
    kind, scope = resolve(options.saliency, options.scope, "reconstruction" if data else None)
    if kind == "reconstruction" and not data:
        raise UsageError(
            f"saliency reconstruction needs {LEAST} samples (and 6 batches) of data",
            where="prune_channels",
            fix="give data.calibration, or use saliency: l2",
        )
    counted = None
    if budget.measure != LATENCY:
        cost = job.cost(budget.measure)
        counted = cost, budget.limit(cost({}))
    return _Aim(budget, counted, kind, scope)


def _choose(
    job: Job, source: Artifact, seen: Readers, options: Any, aim: _Aim
) -> tuple[latency.Removal, list[str], dict[str, Any]]:
    """Group name → its channels that go, notes, and what was measured for it."""
    ladders_of, how = _ladders(job, seen, options, aim.kind)

    def choose(
        cost: CostModel, limit: float, multiple: int
    ) -> tuple[dict[str, list[int]], list[str]]:
        return fitted(cost, ladders_of, aim.budget, limit, scope=aim.scope, multiple=multiple)

    if aim.counted is None:
        chosen, notes, facts = _timed(job, source, choose, options, aim.budget)
        return chosen, [how, *notes], facts
    found, notes = choose(*aim.counted, options.multiple or job.env.context.width_multiple)
    return found, [how, *notes], {}


def _timed(
    job: Job, source: Artifact, choose: latency.Choose, options: Any, budget: Budget
) -> tuple[latency.Removal, list[str], dict[str, Any]]:
    """By time measured on the target; graphs are timed before they are repaired."""

    def write(model: Any, root: Path) -> Artifact:
        root.mkdir()
        save_model(model, root / source.entry)
        return Artifact.write(
            root, source.format, source.entry, source.inputs, source.outputs, source.facts
        )

    shrunk = lambda removal: removed(job.model, job.trace, _roots(job, removal))  # noqa: E731
    groups = [g.channels for g in job.groups]
    subject = latency.Subject(job.model, groups, job.cost("macs"), shrunk, choose)
    timer = clock(job.env, options.on or None, write, data_of(job.env))
    return latency.pruned_to_time(subject, budget, timer, options.multiple, job.env)


def _roots(job: Job, chosen: latency.Removal) -> set[int]:
    return {g.roots[i] for g in job.groups for i in chosen.get(g.name, ())}


def _ladders(
    job: Job, seen: Readers, options: Any, kind: Kind
) -> tuple[Callable[[int], list[allocate.Ladder]], str]:
    """What each group loses at widths that are multiples of a number, and how that was found."""
    if kind == "reconstruction":
        found = _curves(job, seen, options)
        how = "saliency: error of the outputs after reconstruction"
        return lambda step: [
            _ladder(g, found[g.name], step, options.floor) for g in job.groups
        ], how
    scores = _scores(job, kind)
    what = "random, a control" if kind == "random" else f"{kind} of the weights"
    return lambda step: [
        allocate.ladder(g.channels, scores[g.name], step, options.floor) for g in job.groups
    ], f"saliency: {what}"


def _scores(job: Job, kind: Kind) -> saliency.Saliency:
    if kind in ("l2", "lamp"):
        norms = weight_norms(job.model, job.trace, job.groups)
        return norms if kind == "l2" else saliency.shares(norms)
    return saliency.random([g.channels for g in job.groups], job.env.context.seed)


def _ladder(group: Group, curve: Curve, step: int, floor: float) -> allocate.Ladder:
    counts = allocate.removals(len(group.roots), step, floor)
    return allocate.Ladder(
        group.channels, curve.order, counts, tuple(curve.losses[c] for c in counts)
    )


def _readers(job: Job, options: Any) -> Readers:
    split, context = job.parts, job.env.context
    job.env.progress(0.05, "reading what layers see")
    if split is None:
        return readers(job.model, job.trace, None, 0, context.threads, context.seed)
    count = int(np.clip(_READING / max(1.0, job.macs), 48, max(48, options.samples)))
    data = lambda: split.feeds(split.fit, count)  # noqa: E731
    return readers(job.model, job.trace, data, 8192, context.threads, context.seed)


def _curves(job: Job, found: Readers, options: Any) -> dict[str, Curve]:
    assert job.parts is not None
    context = job.env.context
    runs = len(WIDTHS) * len(job.groups) + 1
    count = int(np.clip(_MEASURING / max(1.0, job.macs * runs), 8, 128))
    feeds = list(job.parts.feeds(job.parts.fit, count))
    names = {cut.tensor for cut in job.trace.cuts if cut.role == "in"}
    names |= {layer.bias for layer in found.layers.values() if layer.bias}
    probe = Probe(job.model, names, feeds, context.threads)
    told = lambda done, text: job.env.progress(0.1 + 0.4 * done, text)  # noqa: E731
    return curves(found, job.groups, options.floor, probe, told)


def _made(job: Job, seen: Readers, gone: set[int], options: Any) -> tuple[Any, list[str]]:
    """The graph without the units in `gone`, repaired where that helps, and notes."""
    plain = removed(job.model, job.trace, gone)
    _check_same(job, plain, gone)
    if job.parts is None or not options.repair:
        why = "repair: off" if job.parts else f"fewer than {LEAST} samples (or 6 batches)"
        return plain, [f"weights are the original's: {why}"]
    solved = _compensated(job, seen, gone)
    pair = Pair(job.model, removed(solved, job.trace, gone), job.trace, gone, job.shapes)
    start = removed(solved, job.trace, gone)
    passes = max(1, len(pair.changed()))
    count = int(np.clip(_REPAIRING / max(1.0, job.macs * passes), 32, max(32, options.samples)))
    context = job.env.context
    looked, changed = repair(
        pair, job.parts, count, threads=context.threads, seed=context.seed,
        told=lambda done, text: job.env.progress(0.5 + 0.45 * done, text),
    )  # fmt: skip
    candidates = (plain, start, pair.pruned)
    noise = _noise(job, candidates, job.parts.choose, count)
    best = candidates[int(np.argmin(noise))]
    held = [_decibels(n) for n in _noise(job, (plain, best), job.parts.held, count)]
    note = (
        f"{changed} of {looked} layers re-solved by least squares, without labels: on samples "
        f"held out, the outputs' error is {held[0]:.1f} dB below the signal before repair and "
        f"{held[1]:.1f} dB after"
    )
    return best, [note]


def _compensated(job: Job, found: Readers, gone: set[int]) -> Any:
    """The whole graph, with readers whose other weights make up for the units in `gone`."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(job.model)
    tensors = {t.name: t for t in made.graph.initializer}
    for cut in job.trace.cuts:
        if cut.role == "in" and not gone.isdisjoint(job.trace.units.roots(cut.ids).tolist()):
            for name, array in found.without(cut, gone).items():
                tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
    return made


def _noise(job: Job, made: Sequence[Any], part: Samples, samples: int) -> list[float]:
    """For each model, the error of its outputs over their power, against the original's."""
    assert job.parts is not None
    feeds = list(job.parts.feeds(part, samples))

    def outputs(model: Any) -> list[list[Any]]:
        session = session_of(model, job.env.context.threads)
        return [list(session.run(None, dict(batch))) for batch in feeds]

    want = outputs(job.model)
    power = powers(want)
    found = [share(want, outputs(model), power) for model in made]
    return [n if np.isfinite(n) else float("inf") for n in found]


def _decibels(noise: float) -> float:
    return float(-10 * np.log10(max(noise, 1e-12)))


def _check_same(job: Job, made: Any, gone: set[int]) -> None:
    """Removing units must equal reading none of them."""
    from exporters._check import ort_errors
    from exporters.base import example_feeds

    env = job.env
    if job.parts is None:
        dims = {"batch": 2, **env.reference.facts.get("dims", {}), **env.context.dims}
        feeds: list[Feeds] = [example_feeds(env.reference.inputs, dims, env.context.seed)]
    else:
        feeds = list(job.parts.feeds(job.parts.fit, 4))
    try:
        want, got = (
            [session_of(m, env.context.threads).run(None, dict(f)) for f in feeds]
            for m in (masked(job.model, job.trace, gone), made)
        )
    except ort_errors() as error:
        raise BuildFailed(
            f"without its channels the graph fails: {str(error).splitlines()[0]}",
            where="prune_channels",
        ) from error
    noise = share(want, got, powers(want)) if _alike(want, got) else float("inf")
    if not noise <= _TOLERANCE**2:
        raise BuildFailed(
            "removing channels changed more than those channels",
            where="prune_channels",
            expected=f"an error of at most {_TOLERANCE:.0e} of the outputs",
            got=f"{np.sqrt(noise):.2g}",
            fix="keep layers whole with keep.channels, or prune the torch module",
        )


def _alike(want: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]]) -> bool:
    pairs = [(a, b) for w, g in zip(want, got, strict=True) for a, b in zip(w, g, strict=True)]
    return all(a.shape == b.shape for a, b in pairs)


def _facts(
    source: Artifact, job: Job, chosen: latency.Removal, parameters: tuple[int, int]
) -> dict[str, Any]:
    lost: dict[str, list[int]] = {}
    for group in job.groups:
        gone = set(chosen.get(group.name, ()))
        for m in group.channels.members:
            own = {o for o, r in zip(m.own, m.root, strict=True) if r in gone}
            if own:
                lost[m.layer] = sorted({*lost.get(m.layer, []), *own})
    cost = job.cost("macs")
    counts = {name: len(gone) for name, gone in chosen.items()}
    kept = {k: v for k, v in source.facts.items() if k not in ("notes", "removed")}
    return {
        **kept,
        "parameters": parameters[1],
        "parameters_before": parameters[0],
        "macs": round(cost(counts)),
        "macs_before": round(cost({})),
        "removed": of_original(source.facts.get("removed", {}), lost),
    }
