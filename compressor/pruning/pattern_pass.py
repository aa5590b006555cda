"""`prune_pattern` on any model whose layers are matrices: what goes, and what the rest becomes.

Torch modules and ONNX graphs differ in how weights are read and activations tapped (`Subject`);
everything else is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from compressor.pruning import saliency
from compressor.pruning.onnx_data import LEAST, Parts, enough, parts
from compressor.pruning.onnx_probe import powers, share
from compressor.pruning.pattern_solve import energy, scores, solve
from compressor.pruning.patterns import Pattern, parse_pattern, parse_sparsity, threshold
from compressor.quantization.reconstruction_taps import BATCH, MOST_COLUMNS, ROWS, Tap, collect
from exporters.base import Env, Samples
from runtimes.base import Feeds
from runtimes.errors import Refusal, Unsupported, UsageError
from runtimes.types import Artifact, TensorSpec

Kind = Literal["magnitude", "wanda", "reconstruction"]
STEP = "prune_pattern"
_NARROW = 256  # input channels; users report next to no gain from 2:4 below that


@dataclass(frozen=True)
class Slot:
    """A weight that may have a pattern.

    Attributes:
        layer: whose it is, as users know it.
        weight: name of the tensor.
        kernel: positions that each input channel has a column for.
        bias: the matrix has the bias as its last column.
        tap: how to get at the rows it is multiplied with, bias included; None where that is not
            known.
    """

    layer: str
    weight: str
    kernel: int = 1
    bias: bool = False
    tap: Tap | None = None


class Subject(Protocol):
    """A model whose weights are read and written as matrices."""

    def get(self, slot: Slot) -> Any:
        """[groups, outputs, columns (+ 1 with a bias)], float64."""

    def set(self, slot: Slot, values: Any) -> None:
        """Write a matrix back."""

    def tapped(self, names: Sequence[str], shapes: bool) -> Callable[[Feeds], Sequence[Any]]:
        """The model with the named tensors (or their shapes) as outputs, as `collect` wants it."""

    def outputs(self, feeds: Sequence[Feeds]) -> list[list[Any]]:
        """Of the model as it is now, batch after batch."""


@dataclass(frozen=True)
class Job:
    """What is asked for, of which weights, and the data there is."""

    subject: Subject
    slots: Sequence[Slot]
    pattern: Pattern
    keep: float
    kind: Kind
    scope: Literal["global", "uniform"]
    floor: float
    parts: Parts | None
    env: Env
    samples: int

    def write(self, values: Mapping[str, Any]) -> None:
        """Write matrices by weight, -0 as 0: a sign costs the coded package a bit."""
        for slot in self.slots:
            self.subject.set(slot, values[slot.weight] + 0.0)

    def grams(self) -> Iterator[dict[str, Any]]:
        """Gram matrices by weight, pass after pass; of the weights that have one."""
        taps = [s.tap for s in self.slots if s.tap and s.tap.columns <= MOST_COLUMNS]
        if self.kind == "magnitude" or self.parts is None or not taps:
            return iter(())
        split = self.parts
        return collect(
            taps, self.subject.tapped, lambda: split.feeds(split.fit, self.samples),
            rows=2 * ROWS, seed=self.env.context.seed,
        )  # fmt: skip


def fitting(
    slots: Sequence[Slot], subject: Subject, pattern: Pattern, least: int
) -> tuple[list[Slot], list[Refusal]]:
    """Those of `slots` that the pattern divides evenly, and why the others are left alone."""
    fit, reasons = [], []
    for slot in slots:
        _, outputs, columns = (values := subject.get(slot)).shape
        why = pattern.unfit(outputs, (columns - slot.bias) // slot.kernel)
        if values.size < least:
            why = f"{values.size} weights are fewer than `least`, {least}"
        if why:
            reasons.append(Refusal(slot.layer, why))
        else:
            fit.append(slot)
    return fit, reasons


def run_pattern(
    subject: Subject,
    slots: Sequence[Slot],
    left_alone: Sequence[Refusal],
    inputs: Sequence[TensorSpec],
    data: Samples | None,
    options: Any,
    env: Env,
) -> dict[str, Any]:
    """Give the weights of `subject` their zeros in place; the facts and notes of the artifact.

    Raises `Unsupported` naming every layer and reason where no weight can have the pattern,
    `UsageError` where no weight would become zero, or where the saliency needs data.
    """
    pattern = parse_pattern(options.pattern)
    slots, unfit = fitting(slots, subject, pattern, options.least)
    reasons = [*left_alone, *unfit]
    if not slots:
        raise Unsupported(f"no weight can have the pattern {pattern}", reasons, where=STEP)
    split = None
    if data is not None and enough(inputs, data, options.samples):
        split = parts(inputs, data, options.samples, env.context.seed, BATCH)
    kind = _kind(options.saliency, split is not None)
    job = Job(
        subject, slots, pattern, 1 - parse_sparsity(options.sparsity, pattern), kind,
        "uniform" if pattern.quads else options.scope, options.floor, split, env, options.samples,
    )  # fmt: skip
    before, wanted = _zeros(job), _outputs(job)
    notes = _sparsify(job, wanted)
    after = _zeros(job)
    if sum(after.values()) <= sum(before.values()):
        raise UsageError(
            "no further weight would become zero", where=STEP,
            expected=f"fewer than {sum(before.values()):,} zeros before the step",
            got=f"a sparsity of {options.sparsity}", fix="ask for more, or leave the step out",
        )  # fmt: skip
    return _facts(job, after, notes, reasons)


def _kind(asked: str, data: bool) -> Kind:
    if asked == "auto":
        return "reconstruction" if data else "magnitude"
    if asked != "magnitude" and not data:
        raise UsageError(
            f"saliency {asked} needs {LEAST} samples (and 6 batches) of data", where=STEP,
            fix="give data.calibration, or use saliency: magnitude",
        )  # fmt: skip
    return asked  # type: ignore[return-value]


def _zeros(job: Job) -> dict[str, int]:
    """Weight → how many of its values are zero, biases aside."""
    found = {}
    for slot in job.slots:
        values = job.subject.get(slot)
        inner = values.shape[2] - slot.bias
        found[slot.weight] = int((values[:, :, :inner] == 0).sum())
    return found


def _sparsify(job: Job, wanted: Mapping[str, list[list[Any]]]) -> list[str]:
    """Choose, re-solve and write; whether the re-solved weights stay is chosen on data; notes."""
    keeps = _shares(job)
    solved: dict[str, Any] = {}
    by_weight = {slot.weight: slot for slot in job.slots}
    for grams in job.grams():
        for name in list(grams):
            solved[name] = _one(job, by_weight[name], grams.pop(name), keeps[name])
            job.env.progress(0.3 + 0.5 * len(solved) / len(job.slots), f"zeros in {name}")
    seen = len(solved)
    for name, slot in by_weight.items():
        if name not in solved:
            solved[name] = _one(job, slot, None, keeps[name])
    plain = {n: job.subject.get(s) * _stays(s, solved[n]) for n, s in by_weight.items()}
    notes = [_how(job, seen)]
    job.write(plain)
    if job.parts is None:
        return notes
    noise = _noise(job, wanted)
    told = (
        f"on samples held out, the outputs' error is {_decibels(noise)} dB below the signal with "
        "the other weights as they were"
    )
    if job.kind != "reconstruction":
        return [*notes, told]
    job.write(solved)
    lower = _noise(job, wanted)
    if lower["choose"] < noise["choose"]:
        return [*notes, f"{told}, {_decibels(lower)} dB with them re-solved"]
    job.write(plain)
    return [*notes, f"{told}; re-solving them brought the model no closer"]


def _stays(slot: Slot, values: Any) -> Any:
    """1 where a weight is not zero, and for the bias."""
    found = (values != 0).astype(np.float64)
    if slot.bias:
        found[:, :, -1] = 1
    return found


def _one(job: Job, slot: Slot, gram: Any | None, keep: float) -> Any:
    values = job.subject.get(slot)
    if gram is not None and job.kind == "reconstruction":
        return solve(values, gram, job.pattern, slot.kernel, keep, int(slot.bias))
    inner = values.shape[2] - slot.bias
    score = scores(values[:, :, :inner], gram)
    values[:, :, :inner] *= job.pattern.best(score, slot.kernel, keep)
    return values


def _shares(job: Job) -> dict[str, float]:
    """Weight → the share of it that stays."""
    if job.scope == "uniform":
        return {slot.weight: job.keep for slot in job.slots}
    by_weight = {slot.weight: slot for slot in job.slots}
    units: dict[str, Any] = {}
    for grams in job.grams():
        for name in list(grams):
            units[name] = _units(job, by_weight[name], grams.pop(name))
            job.env.progress(0.3 * len(units) / len(job.slots), f"what {name} can spare")
    seen = dict(units)
    for name, slot in by_weight.items():
        if name not in seen:
            units[name] = _units(job, slot, None)
            if seen:  # shares of an error and of magnitudes do not compare
                units[name] = np.full(len(units[name]), np.nan)
    known = {name: _with_floor(u, job.floor) for name, u in units.items() if not np.isnan(u).any()}
    limit = threshold(np.concatenate(list(known.values())), job.keep)
    return {n: float((known[n] > limit).mean()) if n in known else job.keep for n in units}


def _with_floor(units: Any, floor: float) -> Any:
    """The scores, those of the best `floor` share infinite."""
    return np.where(units > threshold(units, floor), np.inf, units) if floor > 0 else units


def _units(job: Job, slot: Slot, gram: Any | None) -> Any:
    """What each unit costs as a share of the layer's output power; of magnitudes, as LAMP's."""
    values = job.subject.get(slot)
    inner = values.shape[2] - slot.bias
    found = job.pattern.units(scores(values[:, :, :inner], gram), slot.kernel).ravel()
    if gram is None:
        return saliency.shares({"": found})[""]
    return found / max(energy(values, gram), 1e-30)


def _outputs(job: Job) -> dict[str, list[list[Any]]]:
    """What the untouched model computes on the parts that choose and report."""
    if job.parts is None:
        return {}
    return {
        name: job.subject.outputs(list(job.parts.feeds(getattr(job.parts, name), job.samples)))
        for name in ("choose", "held")
    }


def _noise(job: Job, wanted: Mapping[str, list[list[Any]]]) -> dict[str, float]:
    """Error of the outputs over their power, on each part."""
    now = _outputs(job)
    found = {name: share(want, now[name], powers(want)) for name, want in wanted.items()}
    return {name: n if np.isfinite(n) else float("inf") for name, n in found.items()}


def _decibels(noise: Mapping[str, float]) -> str:
    return f"{-10 * np.log10(max(noise['held'], 1e-12)):.1f}"


def _how(job: Job, seen: int) -> str:
    """By what weights went, as a sentence."""
    how = {
        "magnitude": "the smallest weights went",
        "wanda": "weights went by their size times that of what they are multiplied with",
        "reconstruction": "weights went by the layers' output error, the others re-solved by "
        "least squares, without labels",
    }[job.kind]
    blind = len(job.slots) - seen
    if job.parts is None:
        how += f", without data (or with fewer than {LEAST} samples)"
    elif blind and job.kind != "magnitude":
        how += f" ({blind} layers by size alone: what they read is not known)"
    shared = "every layer has the same share" if job.scope == "uniform" else "layers share them"
    return f"{how}; {shared}"


def _facts(
    job: Job, zeros: Mapping[str, int], notes: Sequence[str], reasons: Sequence[Refusal]
) -> dict[str, Any]:
    sizes = {}
    for slot in job.slots:
        groups, outputs, columns = job.subject.get(slot).shape
        sizes[slot.weight] = groups * outputs * (columns - slot.bias)
    gone, whole = sum(zeros.values()), sum(sizes.values())
    told = f"{gone:,} of {whole:,} weights in {len(job.slots)} layers are zero, {job.pattern}"
    fact = {
        "kind": str(job.pattern),
        "weights": sorted(zeros),
        "zeros": gone,
        "of": whole,
        "shares": {s.layer: round(zeros[s.weight] / sizes[s.weight], 4) for s in job.slots},
    }
    return {
        "pattern": fact,
        "notes": [told, *notes, *_gains(job)],
        "left_alone": [{"layer": r.where, "reason": r.why} for r in reasons],
    }


def _gains(job: Job) -> list[str]:
    """What zeros are good for, and what not."""
    said = (
        "zeros make neither the model file smaller nor ONNX Runtime or OpenVINO faster, whose "
        "kernels multiply with them: only the coded package shrinks (a size gate sees it with "
        "of: package)"
    )
    if not job.pattern.quads:
        return [said]
    narrow = sum((job.subject.get(s).shape[2] - s.bias) // s.kernel < _NARROW for s in job.slots)
    gain = (
        "2:4 is faster in a TensorRT engine built with sparse weights on a GPU with sparse tensor "
        "cores; what it gains per layer was not timed, for want of one here"
    )
    few = (
        f"{narrow} of {len(job.slots)} layers have fewer than {_NARROW} input channels: users "
        "report next to no gain from 2:4 in such layers"
    )
    return [said, gain, few] if narrow else [said, gain]


def with_pattern(source: Artifact, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of `source` with those of `run_pattern`; weights of an earlier pattern stay in."""
    earlier = source.facts.get("pattern", {}).get("weights", [])
    fact = dict(facts["pattern"], weights=sorted({*earlier, *facts["pattern"]["weights"]}))
    notes = [*source.facts.get("notes", []), *facts["notes"]]
    return {**source.facts, **facts, "pattern": fact, "notes": notes}
