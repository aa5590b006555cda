"""Compares two models on the same samples, sample by sample.

Agreement and signal-to-noise of the outputs are kept beside every metric: an accuracy that rises
while the answers change is damage that happened to help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from compressor.data.bind import Array
from compressor.evaluation import Evaluation, call_metric, evaluate, pick
from compressor.metrics import Metric
from compressor.result import Comparison, Interval
from compressor.statistics import (
    Z_95,
    bonett_price,
    clopper_pearson,
    paired_bootstrap,
    paired_bootstrap_of,
)
from exporters._check import wide_pieces
from runtimes.errors import CompressError

__all__ = ["Evaluation", "compare", "evaluate"]

CHANGED = 0.02  # a gain while more answers than this changed is flagged
NOISY_DB = 15.0
IDENTICAL_DB = 300.0  # instead of infinity, which JSON cannot hold


def compare(metric: Metric, base: Evaluation, candidate: Evaluation, seed: int = 0) -> Comparison:
    """The candidate against the original model on the same samples.

    The interval of the drop is two-sided 90 %, so that its upper end is a one-sided 95 % bound:
    Bonett–Price for right/wrong outcomes, Clopper–Pearson for agreement, else the paired bootstrap
    over samples, widened for metrics in 0–1 by what the samples cannot show.
    """
    if base.n != candidate.n:
        raise CompressError(
            "evaluations of different data", expected=f"{base.n} samples", got=f"{candidate.n}"
        )
    agreement = _agreement(base, candidate)
    sqnr_db = _sqnr_db(base.kept, candidate.kept)
    drop, interval, method, flips = _drop(metric, base, candidate, agreement, seed)
    whole = unit(metric, base)
    relative = None if drop is None or whole is None else drop / whole
    found = Comparison(
        drop=drop,
        interval=interval,
        relative_drop=relative,
        method=method,
        flip_rate=flips,
        agreement=agreement,
        sqnr_db=sqnr_db,
        n=candidate.n,
        doubts=list(dict.fromkeys([*candidate.doubts, *_undecided(metric, method, agreement)])),
    )
    found.doubts.extend(_lucky(metric, found))
    return found


def unit(metric: Metric, base: Evaluation) -> float | None:
    """What a drop is divided by to be a relative one; None where there is nothing to relate to."""
    return 1.0 if metric.kind == "free" else abs(base.value or 0.0) or None


def _agreement(base: Evaluation, candidate: Evaluation) -> float | None:
    first, second = base.decisions, candidate.decisions
    if first is None or second is None or first.shape != second.shape or not first.size:
        return None
    return float(((first == second) & (second >= 0)).mean())


def _sqnr_db(base: Mapping[str, Array], candidate: Mapping[str, Array]) -> float | None:
    """10·log10(signal / noise) of the worst floating-point output."""
    worst = None
    for name, wanted in base.items():
        found = candidate.get(name)
        if found is None or found.shape != wanted.shape or wanted.dtype.kind != "f":
            continue
        signal = noise = 0.0
        for one, other in wide_pieces(wanted, found):
            signal += float(np.square(one).sum())
            noise += float(np.square(one - other).sum())
        if not math.isfinite(signal + noise) or (signal == 0 and noise > 0):
            return None
        here = IDENTICAL_DB if noise == 0 else min(IDENTICAL_DB, 10 * math.log10(signal / noise))
        worst = here if worst is None else min(worst, here)
    return worst


def _drop(
    metric: Metric, base: Evaluation, candidate: Evaluation, agreement: float | None, seed: int
) -> tuple[float | None, Interval | None, str, float | None]:
    """(drop, interval, method, flip rate); positive is worse."""
    if metric.kind == "free":
        return _disagreement(metric, agreement, candidate.n)
    if base.value is None or candidate.value is None:
        return None, None, "", None
    said = candidate.higher_is_better
    sign = 1.0 if (metric.higher_is_better if said is None else said) else -1.0
    gap = sign * (base.value - candidate.value)
    differ = base.kind != candidate.kind and {base.kind, candidate.kind} != {"binary", "mean"}
    if differ or base.kind == "none":
        return gap, None, "", None
    if base.kind == candidate.kind == "binary":
        return _flips(base, candidate, sign)
    first, second = base.per_sample, candidate.per_sample
    if first is not None and second is not None:
        interval: Interval | None = paired_bootstrap(sign * first, sign * second, seed=seed)[1:]
    else:
        interval = _resampled(metric, base, candidate, sign, seed)
    if interval is None:
        return gap, None, "", None
    if metric.fraction or (metric.kind == "whole" and 0 <= base.value <= 1):
        interval = _widened(gap, interval, base.n)
    return gap, interval, "paired-bootstrap", None


def _widened(gap: float, interval: Interval, n: int) -> Interval:
    """A bootstrap interval as if two more samples had flipped, one each way.

    Resampling cannot show what was never drawn: with no change in 300 samples its interval is a
    point, while the exact bound is 3/n. Bonett and Price's two pseudo-samples add 2 (z/n)² to the
    variance of a metric in 0–1; the same is added here.
    """
    extra = 2 * (Z_95 / n) ** 2
    low, high = max(0.0, gap - interval[0]), max(0.0, interval[1] - gap)
    return gap - math.sqrt(low**2 + extra), gap + math.sqrt(high**2 + extra)


def _disagreement(
    metric: Metric, agreement: float | None, n: int
) -> tuple[float | None, Interval | None, str, float | None]:
    if agreement is None or metric.name != "agreement":
        return None, None, "", None
    low, high = clopper_pearson(math.floor(agreement * n + 1e-6), n)
    return 1 - agreement, (1 - high, 1 - low), "clopper-pearson", 1 - agreement


def _flips(
    base: Evaluation, candidate: Evaluation, sign: float
) -> tuple[float, Interval, str, float]:
    before, after = base.per_sample, candidate.per_sample
    assert before is not None
    assert after is not None
    worse = int(np.sum(sign * before > sign * after))
    better = int(np.sum(sign * before < sign * after))
    drop, low, high = bonett_price(worse, better, base.n)
    return drop, (low, high), "bonett-price", (worse + better) / base.n


def _resampled(
    metric: Metric, base: Evaluation, candidate: Evaluation, sign: float, seed: int
) -> Interval | None:
    if base.kind == "whole":
        first, second = _recall(metric, base), _recall(metric, candidate)
    elif metric.reducer is not None and base.rows is not None and candidate.rows is not None:
        first, second = metric.reducer(base.rows), metric.reducer(candidate.rows)
    else:
        return None

    def difference(indices: NDArray[np.int64]) -> float:
        counts = np.bincount(indices, minlength=base.n).astype(np.float64)
        return sign * (first(counts) - second(counts))

    try:
        _, low, high = paired_bootstrap_of(
            difference, base.n, seed=seed, resamples=metric.resamples
        )
    except ValueError:  # undefined on every resample
        return None
    return low, high


def _recall(metric: Metric, found: Evaluation) -> Callable[[NDArray[np.float64]], float]:
    """The user's function, called again on resamples of the outputs and labels."""

    def value(counts: NDArray[np.float64]) -> float:
        drawn = np.repeat(np.arange(found.n), counts.astype(np.int64))
        outputs = {name: array[drawn] for name, array in found.kept.items()}
        labels = None if found.labels is None else pick(found.labels, drawn.tolist())
        return call_metric(metric, outputs, labels, found.n)[0]

    return value


def _undecided(metric: Metric, method: str, agreement: float | None) -> list[str]:
    if metric.name == "agreement" and agreement is None:
        return ["the outputs are no class scores to agree on: SQNR stands alone"]
    if metric.kind != "free" and not method:
        return ["no outcome per sample: the drop has no interval"]
    return []


def _lucky(metric: Metric, found: Comparison) -> list[str]:
    if found.drop is None or found.drop >= 0 or metric.kind == "free":
        return []
    gain = f"{-100 * found.drop:.2f} points" if metric.fraction else f"{-found.drop:.4g}"
    change = ""
    if found.agreement is not None and 1 - found.agreement > CHANGED:
        change = f"{1 - found.agreement:.1%} of answers changed"
    elif found.agreement is None and found.sqnr_db is not None and found.sqnr_db < NOISY_DB:
        change = f"the outputs keep only {found.sqnr_db:.1f} dB signal to noise"
    text = f"{metric.name} improved by {gain} while {change}: damage that happened to help"
    return [text] if change else []
