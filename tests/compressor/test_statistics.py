"""Statistics against known values, scipy, and small simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor import statistics as s


@pytest.mark.parametrize(
    ("p", "df", "value"),
    [
        (0.975, 1, 12.706205),
        (0.975, 4, 2.776445),
        (0.95, 6, 1.943180),
        (0.995, 30, 2.749996),
        (0.025, 4, -2.776445),
        (0.5, 3, 0.0),
        (0.975, 1e6, 1.959966),
    ],
)
def test_t_quantile_table(p: float, df: float, value: float) -> None:
    assert s.t_quantile(p, df) == pytest.approx(value, abs=2e-6)


def test_t_quantile_and_incomplete_beta_equal_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is an extra")
    for df in (1, 2, 3.5, 11, 99, 4000):
        for p in (1e-4, 0.05, 0.3, 0.51, 0.99, 0.9999):
            assert s.t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9)
    for a, b, x in ((0.5, 2, 0.1), (300, 5, 0.99), (20_000, 30_000, 0.401), (1, 1, 0.7)):
        assert s.incomplete_beta(a, b, x) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-9)


def test_t_quantile_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="0 < p < 1"):
        s.t_quantile(1.0, 3)


@given(st.floats(0.01, 0.99), st.floats(0.5, 200))
def test_t_quantile_is_odd(p: float, df: float) -> None:
    # 1 - p is rounded, so compare where the density turns that into
    assert s.t_quantile(p, df) == pytest.approx(-s.t_quantile(1 - p, df), rel=1e-6, abs=1e-9)


@given(st.integers(1, 400), st.floats(0.01, 0.99), st.data())
def test_binomial_cdf_is_a_sum(n: int, p: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    exact = math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
    assert s.binomial_cdf(k, n, p) == pytest.approx(exact, rel=1e-8, abs=1e-12)


def test_nearest_rank_is_x_ceil_np() -> None:
    values = list(range(1, 101))
    assert s.nearest_rank(values, 0.99) == 99
    assert s.nearest_rank(values, 0.5) == 50
    assert s.nearest_rank(values, 0.07) == 7
    assert s.nearest_rank([4.0], 0.5) == 4.0
    with pytest.raises(ValueError, match="no values"):
        s.nearest_rank([], 0.5)


@pytest.mark.parametrize(("p", "n"), [(0.9, 29), (0.95, 59), (0.99, 299)])
def test_percentile_bound_needs_enough_values(p: float, n: int) -> None:
    values = np.arange(n) * 10.0 % n  # neighbours differ, so every value counts
    assert s.percentile_upper_bound(values, p) == n - 1  # exactly enough: the largest
    assert s.percentile_upper_bound(values[: n - 1], p) is None


def test_percentile_bound_covers() -> None:
    rng = np.random.default_rng(5)
    true = -math.log(0.1)  # p90 of Exp(1)
    below = sum(
        (s.percentile_upper_bound(rng.exponential(size=200), 0.9) or 0) < true for _ in range(600)
    )
    assert below / 600 < 0.075


def test_percentile_bound_widens_when_neighbours_agree() -> None:
    rng = np.random.default_rng(1)
    alone = rng.normal(size=1000)
    together = np.sort(alone)  # all high ones stand side by side
    assert s.percentile_upper_bound(together, 0.5) is None or s.percentile_upper_bound(
        together, 0.5
    ) > s.percentile_upper_bound(alone, 0.5)


def test_median_interval_by_hand() -> None:
    value, low, high = s.median_interval([1.0, 1.0, math.e**3])
    half = 4.302653 * math.sqrt(3) / math.sqrt(3)
    assert value == pytest.approx(math.e)
    assert math.log(low) == pytest.approx(1 - half, abs=1e-5)
    assert math.log(high) == pytest.approx(1 + half, abs=1e-5)


def test_one_round_has_no_interval() -> None:
    assert s.median_interval([2.0]) == (pytest.approx(2.0), 0.0, math.inf)
    assert s.ratio_interval([0.0]) == (1.0, 0.0, math.inf)


@pytest.mark.parametrize("call", [s.median_interval, s.ratio_interval])
def test_no_round_is_an_error(call: object) -> None:
    with pytest.raises(ValueError, match="needs"):
        call([])  # type: ignore[operator]


def test_ratio_interval_covers() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(1000):
        _, low, high = s.ratio_interval(rng.normal(0.3, 0.02, size=5).tolist())
        hits += low <= math.exp(0.3) <= high
    assert 0.93 < hits / 1000 < 0.97


def test_bonett_price_by_hand() -> None:
    drop, low, high = s.bonett_price(3, 1, 98)
    assert drop == pytest.approx(2 / 98)
    half = 1.645 * math.sqrt((0.04 + 0.02 - 0.02**2) / 100)
    assert (low, high) == (pytest.approx(0.02 - half), pytest.approx(0.02 + half))


@pytest.mark.parametrize(("n", "flips"), [(300, 0.005), (300, 0.02), (1000, 0.02), (3000, 0.06)])
def test_bonett_price_rarely_passes_at_the_limit(n: int, flips: float) -> None:
    # true drop exactly the limit: at most about 5 % may pass (edge case of the gate)
    limit = min(flips, 0.01)
    rng = np.random.default_rng(11)
    odds = [(flips + limit) / 2, (flips - limit) / 2, 1 - flips]
    counts = rng.multinomial(n, odds, size=4000)
    passed = sum(s.bonett_price(b, c, n)[2] <= limit for b, c, _ in counts.tolist())
    assert passed / 4000 < 0.065


@given(st.integers(1, 5000), st.data())
def test_bonett_price_holds_its_centre(n: int, data: st.DataObject) -> None:
    b = data.draw(st.integers(0, n))
    c = data.draw(st.integers(0, n - b))
    drop, low, high = s.bonett_price(b, c, n)
    assert -1 <= low <= high <= 1
    assert low <= drop * n / (n + 2) <= high


def test_bonett_price_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="b=9"):
        s.bonett_price(9, 9, 10)


@pytest.mark.parametrize(
    ("drop", "flips", "n"),
    [(0, 0.01, 619), (0.0025, 0.01, 1099), (0.005, 0.01, 2467), (0, 0.10, 6183), (0, 0.0, 300)],
)
def test_samples_needed_table(drop: float, flips: float, n: int) -> None:
    assert s.samples_needed(drop, 0.01, flips) == n


def test_samples_needed_none_at_the_limit() -> None:
    assert s.samples_needed(0.01, 0.01, 0.02) is None


def test_clopper_pearson_known_values() -> None:
    low, high = s.clopper_pearson(0, 300)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.05 ** (1 / 300), rel=1e-9)
    assert s.clopper_pearson(10, 10)[1] == 1.0
    assert s.clopper_pearson(8, 10, level=0.95) == (
        pytest.approx(0.44390, abs=1e-5),
        pytest.approx(0.97479, abs=1e-5),
    )


@given(st.integers(1, 2000), st.data())
def test_clopper_pearson_holds_the_proportion(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = s.clopper_pearson(k, n)
    assert 0 <= low <= k / n <= high <= 1


def test_bootstrap_of_values_is_near_normal_theory() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=4000)
    candidate = base - rng.normal(0.1, 1.0, size=4000)
    mean, low, high = s.paired_bootstrap(base, candidate)
    assert mean == pytest.approx((base - candidate).mean())
    half = 1.645 * (base - candidate).std() / math.sqrt(4000)
    assert (low, high) == (
        pytest.approx(mean - half, abs=half * 0.1),
        pytest.approx(mean + half, abs=half * 0.1),
    )


def test_bootstrap_of_a_callable_is_paired_and_seeded() -> None:
    rng = np.random.default_rng(4)
    base, candidate = rng.normal(size=200), rng.normal(size=200)

    def gap(index: np.ndarray) -> float:
        return float(base[index].mean() - candidate[index].mean())

    first = s.paired_bootstrap_of(gap, 200, seed=9, resamples=300)
    assert first == s.paired_bootstrap_of(gap, 200, seed=9, resamples=300)
    assert first != s.paired_bootstrap_of(gap, 200, seed=10, resamples=300)
    assert first[1] < first[0] < first[2]


def test_bootstrap_leaves_undefined_resamples_out() -> None:
    calls = iter([math.nan, 1.0, 2.0, 3.0, 9.0])
    assert s.paired_bootstrap_of(lambda _: next(calls), 5, resamples=4) == (9.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="undefined"):
        s.paired_bootstrap_of(lambda _: math.nan, 5, resamples=4)


def test_bootstrap_covers() -> None:
    rng = np.random.default_rng(6)
    hits = 0
    for i in range(200):
        gap = rng.normal(0.5, 1.0, size=100)
        _, low, high = s.paired_bootstrap(gap, np.zeros(100), seed=i, resamples=400)
        hits += low <= 0.5 <= high
    assert 0.84 < hits / 200 < 0.95
