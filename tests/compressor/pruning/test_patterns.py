"""Patterns of zeros: exact in every group, the least valuable go, the rest makes up for them."""

import numpy as np
import pytest

from compressor.passes.prune_pattern import Options
from compressor.pruning.pattern_solve import energy, scores, solve
from compressor.pruning.patterns import Pattern, parse_pattern, threshold
from runtimes.errors import UsageError

RNG = np.random.default_rng(0)
KERNEL = 9
QUADS, SINGLE, BLOCK = parse_pattern("2:4"), parse_pattern("unstructured"), parse_pattern("2x4")


def layer(groups=2, outputs=8, inputs=16, kernel=KERNEL):
    """A weight, and rows of correlated inputs to fit on and to test on, by group."""
    columns = inputs * kernel
    weight = RNG.standard_normal((groups, outputs, columns))
    mix = RNG.standard_normal((groups, columns // 4, columns))
    noise = 0.1 * RNG.standard_normal((groups, 600, columns))
    rows = RNG.standard_normal((groups, 600, columns // 4)) @ mix + noise
    return weight, rows[:, :400], rows[:, 400:]


def gram(rows):
    return rows.transpose(0, 2, 1) @ rows


def by_position(values, kernel=KERNEL):
    """[groups, outputs, kernel positions, channels], written out once more."""
    groups, outputs, columns = values.shape
    return values.reshape(groups, outputs, columns // kernel, kernel).transpose(0, 1, 3, 2)


def test_two_of_four_channels_stay_at_every_position():
    weight, *_ = layer()
    stays = QUADS.best(scores(weight, None), KERNEL, 0.5)
    quads = by_position(stays).reshape(-1, 4)
    assert (quads.sum(axis=1) == 2).all()
    sizes = np.abs(by_position(weight)).reshape(-1, 4)
    smallest_kept = np.where(quads, sizes, np.inf).min(axis=1)
    assert (smallest_kept >= np.where(quads, 0, sizes).max(axis=1)).all()


def test_equal_weights_still_leave_two_of_four():
    stays = QUADS.best(np.ones((1, 4, 8)), 1, 0.5)
    assert (stays.reshape(-1, 4).sum(axis=1) == 2).all()


def test_blocks_go_as_one():
    weight, *_ = layer()
    stays = by_position(BLOCK.best(scores(weight, None), KERNEL, 0.5))
    blocks = stays.reshape(2, 4, 2, KERNEL, 4, 4).sum(axis=(2, 5))
    assert set(np.unique(blocks)) == {0, 8}
    assert (blocks == 0).mean() == 0.5


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_single_weights_meet_the_share(share):
    weight, *_ = layer()
    stays = SINGLE.best(scores(weight, None), KERNEL, 1 - share)
    assert (~stays).mean() == pytest.approx(share, abs=1 / weight.size)
    assert np.abs(weight[stays]).min() > np.abs(weight[~stays]).max()


@pytest.mark.parametrize("pattern", [QUADS, SINGLE, BLOCK], ids=str)
def test_outputs_not_fitted_on_move_less_than_by_magnitude(pattern):
    weight, fit, held = layer()
    made = solve(weight, gram(fit), pattern, KERNEL, 0.5, 0)
    power = energy(weight, gram(held))

    def error(values):
        return energy(weight - values, gram(held)) / power

    plain = weight * pattern.best(scores(weight, None), KERNEL, 0.5)
    same = weight * (made != 0)
    assert error(made) < 0.1 * error(plain)
    assert error(made) < 0.1 * error(same)  # not only other zeros: the others make up for them
    assert (made == 0).mean() == pytest.approx(0.5, abs=0.01)
    if pattern is QUADS:
        assert ((by_position(made) != 0).reshape(-1, 4).sum(axis=1) <= 2).all()


def test_what_stays_is_the_least_squares_solution():
    weight, fit, _ = layer(groups=1, outputs=3, inputs=4)
    made = solve(weight, gram(fit), SINGLE, KERNEL, 0.5, 0)
    whole = gram(fit)[0] + 0.01 * np.trace(gram(fit)[0]) / 36 * np.eye(36)
    for row, wanted in zip(made[0], weight[0], strict=True):
        at = np.flatnonzero(row)
        exact = np.linalg.solve(whole[np.ix_(at, at)], whole[at] @ wanted)
        np.testing.assert_allclose(row[at], exact, rtol=0, atol=2e-3 * np.abs(exact).max())


def test_zeros_stay_and_the_bias_is_no_weight():
    weight, fit, _ = layer(groups=1)
    weight[:, :, ::5] = 0
    with_bias = np.concatenate([weight, 1e-6 * np.ones((1, 8, 1))], axis=2)
    rows = np.concatenate([fit, np.ones((1, 400, 1))], axis=2)
    made = solve(with_bias, gram(rows), SINGLE, KERNEL, 0.4, 1)
    assert not made[:, :, ::5][:, :, :-1].any()
    assert (made[:, :, -1] != 0).all()
    assert (made[:, :, :-1] == 0).mean() == pytest.approx(0.6, abs=0.01)


def test_the_same_rows_give_the_same_weights():
    weight, fit, _ = layer()
    first, second = (solve(weight, gram(fit), QUADS, KERNEL, 0.5, 0) for _ in range(2))
    assert (first == second).all()


def test_a_layer_that_sees_nothing_keeps_its_values():
    weight, *_ = layer(groups=1)
    made = solve(weight, np.zeros((1, 144, 144)), SINGLE, KERNEL, 0.5, 0)
    assert np.isfinite(made).all()
    np.testing.assert_allclose(made[made != 0], weight[made != 0])


def test_threshold_at_the_ends():
    values = np.arange(10.0)
    assert threshold(values, 1) == -np.inf
    assert (values > threshold(values, 0.3)).sum() == 3
    assert (values > threshold(values, 0)).sum() == 1  # never everything


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pattern": 124}, "quotes"),
        ({"pattern": "3:4"}, "only two of four"),
        ({"pattern": "1:2"}, "no such pattern"),
        ({"pattern": "0x4"}, "no such pattern"),
        ({"pattern": "4by4"}, "no such pattern"),
        ({"pattern": "2:4", "sparsity": "60%"}, "half"),
        ({"sparsity": 50}, "write 50%"),
        ({"sparsity": "much"}, "not a share"),
        ({"sparsity": "100%"}, "not a share"),
        ({"sparsity": 0}, "not a share"),
        ({"sparsity": 0.8, "floor": 0.3}, "cannot keep"),
        ({"samples": 0}, "samples"),
    ],
)
def test_bad_options_say_what_is_wrong(given, says):
    with pytest.raises(UsageError, match=says):
        Options(**given)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("4x1", Pattern(outputs=4)), ("1x1", Pattern()), ("16x2", Pattern(outputs=16, inputs=2))],
)
def test_blocks_are_outputs_by_inputs(text, pattern):
    assert parse_pattern(text) == pattern
