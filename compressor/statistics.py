"""Intervals and bounds that verdicts stand on; numpy and the standard library only.

Times: t-intervals over logarithms of round-level values, because the process and not the iteration
is the unit of variance. Accuracy: Bonett–Price for paired right/wrong outcomes, the percentile
bootstrap over samples for everything else. Percentile = nearest rank, x[ceil(n p) - 1] of the
sorted values; nothing is interpolated and no outlier is removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z_95 = 1.645  # one-sided 95 %; two-sided 90 %
RESAMPLES = 2000
_CHUNK = 1 << 21  # indices drawn at once by the bootstrap: 16 MB


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function I_x(a, b), for a, b > 0 and x in 0–1.

    By its continued fraction with the modified Lentz method (Numerical Recipes, section 6.4),
    on the side of the mean where that converges in O(sqrt(max(a, b))) terms.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _beta_fraction(a, b, x) / a


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0), tiny)
    value = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d, tiny)
            c = _away_from_zero(1.0 + term / c, tiny)
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = p, by bisection to the last bit."""
    low, high = 0.0, 1.0
    for _ in range(1100):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if incomplete_beta(a, b, middle) < p:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@lru_cache(maxsize=256)
def t_quantile(p: float, df: float) -> float:
    """Quantile of Student's t distribution with `df` degrees of freedom, p in (0, 1)."""
    if not 0.0 < p < 1.0 or df <= 0:
        raise ValueError(f"t_quantile needs 0 < p < 1 and df > 0, got p={p}, df={df}")
    if p == 0.5:
        return 0.0
    # y = t²/(df + t²) follows Beta(1/2, df/2)
    y = beta_quantile(abs(2.0 * p - 1.0), 0.5, 0.5 * df)
    return math.copysign(math.sqrt(df * y / (1.0 - y)), p - 0.5)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P[Binomial(n, p) <= k]."""
    if k < 0:
        return 0.0
    return 1.0 if k >= n else incomplete_beta(n - k, k + 1.0, 1.0 - p)


def nearest_rank(sorted_values: Sequence[float] | NDArray[np.generic], p: float) -> float:
    """The p-th percentile (p in 0–1) of sorted values as x[ceil(n p) - 1]; ValueError if empty."""
    n = len(sorted_values)
    if n == 0:
        raise ValueError("a percentile of no values")
    rank = math.ceil(n * p - 1e-9)  # 0.07 * 100 is 7.000000000000001
    return float(sorted_values[min(max(rank, 1), n) - 1])


def percentile_upper_bound(values: ArrayLike, p: float, level: float = 0.95) -> float | None:
    """One-sided upper confidence bound of the p-th percentile, from order statistics.

    The smallest x_(k) with P[Binomial(n, p) <= k - 1] >= level. `values` stand in the order they
    were measured: neighbours that are high together count for less, n_eff = n (1 - r)/(1 + r),
    where r is the lag-1 autocorrelation of "above the percentile", the event that is counted.

    Returns:
        The bound, or None where there are too few values (at 95 %: 29 for p90, 299 for p99).
    """
    series = np.asarray(values, dtype=np.float64).ravel()
    if series.size == 0:
        return None
    ordered = np.sort(series)
    n_eff = _effective_count(series > nearest_rank(ordered, p))
    rank = _smallest_rank(n_eff, p, level)
    if rank is None:
        return None
    scaled = math.ceil(rank * series.size / n_eff - 1e-9)
    return float(ordered[min(scaled, series.size) - 1])


def _smallest_rank(n: int, p: float, level: float) -> int | None:
    if binomial_cdf(n - 1, n, p) < level:
        return None
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        if binomial_cdf(middle - 1, n, p) >= level:
            high = middle
        else:
            low = middle + 1
    return low


def _effective_count(above: NDArray[np.bool_]) -> int:
    centred = above.astype(np.float64) - above.mean()
    power = float(centred @ centred)
    if power == 0.0:
        return int(above.size)
    r = max(0.0, float(centred[1:] @ centred[:-1]) / power)
    return max(1, int(above.size * (1.0 - r) / (1.0 + r)))


def median_interval(
    round_medians: Sequence[float], level: float = 0.95
) -> tuple[float, float, float]:
    """(value, low, high) of a latency from one positive median per round; t on the logarithms.

    One round alone has no interval: (value, 0, inf).
    """
    if len(round_medians) == 0 or min(round_medians) <= 0.0:
        raise ValueError("median_interval needs positive medians, one a round")
    centre, low, high = _t_interval([math.log(m) for m in round_medians], level)
    return math.exp(centre), _exp(low), _exp(high)


def ratio_interval(log_ratios: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(ratio, low, high) from paired log ratios, one a round; one alone gives (ratio, 0, inf)."""
    if len(log_ratios) == 0:
        raise ValueError("ratio_interval needs at least one round")
    centre, low, high = _t_interval(log_ratios, level)
    return math.exp(centre), _exp(low), _exp(high)


def _t_interval(values: Sequence[float], level: float) -> tuple[float, float, float]:
    array = np.asarray(values, dtype=np.float64)
    centre = float(array.mean())
    if array.size < 2:
        return centre, -math.inf, math.inf
    half = t_quantile(0.5 + level / 2, array.size - 1)
    half *= float(array.std(ddof=1)) / math.sqrt(array.size)
    return centre, centre - half, centre + half


def _exp(value: float) -> float:
    return math.exp(value) if value < 700.0 else math.inf


def bonett_price(b: int, c: int, n: int, z: float = Z_95) -> tuple[float, float, float]:
    """(drop, low, high) of the accuracy drop from paired outcomes, each in 0–1.

    b samples were right before and are wrong now, c the reverse, of n. Bonett and Price, Statistics
    in Medicine 31 (2012): Wald's interval after adding one to b and to c. With the default z the
    upper end is a one-sided 95 % bound.
    """
    if n <= 0 or b < 0 or c < 0 or b + c > n:
        raise ValueError(f"bonett_price needs 0 <= b + c <= n, got b={b}, c={c}, n={n}")
    p12, p21 = (b + 1.0) / (n + 2.0), (c + 1.0) / (n + 2.0)
    centre = p12 - p21
    half = z * math.sqrt((p12 + p21 - centre * centre) / (n + 2.0))
    return (b - c) / n, max(-1.0, centre - half), min(1.0, centre + half)


def samples_needed(
    drop: float, limit: float, flip_rate: float, *, level: float = 0.95, power: float = 0.80
) -> int | None:
    """How many samples would decide `drop <= limit` if what was seen so far is the truth.

    (z_level + z_power)² (flip_rate - drop²) / (limit - drop)², and never fewer than 3 / limit: with
    no flip at all the exact 95 % bound is 3/n. All in 0–1.

    Returns:
        The count, or None where the drop equals the limit, so that no count decides.
    """
    if drop == limit:
        return None
    z = NormalDist().inv_cdf(level) + NormalDist().inv_cdf(power)
    variance = max(0.0, flip_rate - drop * drop)
    floor = math.ceil(3.0 / limit - 1e-9) if limit > 0 else 0
    return max(floor, math.ceil(z * z * variance / (limit - drop) ** 2))


def clopper_pearson(successes: int, n: int, level: float = 0.90) -> tuple[float, float]:
    """Exact two-sided interval of a proportion; each end is a one-sided (1 + level)/2 bound."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"clopper_pearson needs 0 <= successes <= n, got {successes} of {n}")
    tail = (1.0 - level) / 2
    low = beta_quantile(tail, successes, n - successes + 1.0) if successes else 0.0
    high = beta_quantile(1.0 - tail, successes + 1.0, n - successes) if successes < n else 1.0
    return low, high


def paired_bootstrap(
    base: ArrayLike,
    candidate: ArrayLike,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.90,
) -> tuple[float, float, float]:
    """(mean difference, low, high) of base - candidate; both hold one value a sample.

    Percentile bootstrap over samples; the pairing is kept by resampling the differences.
    """
    difference = np.asarray(base, dtype=np.float64) - np.asarray(candidate, dtype=np.float64)
    if difference.ndim != 1 or difference.size == 0:
        raise ValueError(f"paired_bootstrap needs one value a sample, got {difference.shape}")
    rng = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    at_once = max(1, min(resamples, _CHUNK // difference.size))
    for start in range(0, resamples, at_once):
        shape = (min(at_once, resamples - start), difference.size)
        means.append(difference[rng.integers(0, difference.size, shape)].mean(axis=1))
    return float(difference.mean()), *_ends(np.concatenate(means), level)


def paired_bootstrap_of(
    difference: Callable[[NDArray[np.int64]], float],
    n: int,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.90,
) -> tuple[float, float, float]:
    """(difference, low, high) of a statistic that is no mean, such as F1 or mAP.

    `difference(indices)` computes base minus candidate on the same resampled samples. Resamples on
    which it is NaN (a class that is not drawn) are left out; all NaN is a ValueError.
    """
    if n <= 0:
        raise ValueError("paired_bootstrap_of needs samples")
    rng = np.random.default_rng(seed)
    drawn = np.array([difference(rng.integers(0, n, n)) for _ in range(resamples)])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size == 0:
        raise ValueError("the metric is undefined on every resample")
    return float(difference(np.arange(n))), *_ends(drawn, level)


def _ends(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    ordered = np.sort(values)
    tail = (1.0 - level) / 2
    return nearest_rank(ordered, tail), nearest_rank(ordered, 1.0 - tail)
