"""The distance to the original: zero for itself, free of scale, blind to whole numbers."""
# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from compressor.recovery.losses import distance, divergence


def test_is_one_for_a_constant_at_the_mean_whatever_the_scale():
    aim = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    for scale in (1e-3, 1.0, 1e3):
        constant = (aim * scale).mean().expand_as(aim)
        assert float(distance([constant], [aim * scale])) == pytest.approx(1.0, rel=0.01)
    assert float(distance([aim], [aim])) == 0.0


def test_every_float_output_weighs_the_same_and_integers_nothing():
    aim = torch.arange(4.0)
    near, labels = aim + 1, torch.tensor([1, 2, 3, 4])
    one = float(distance([near], [aim]))
    both = float(distance([near, aim * 100, labels], [aim, aim * 100, labels]))
    assert both == pytest.approx(one / 2)


def test_divergence_is_that_of_the_probabilities_and_blind_to_shifts():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 7, 3, generator=rng), torch.randn(5, 7, 3, generator=rng)
    p, q = (torch.softmax(x.double(), 1) for x in (b, a))
    want = (p * (p / q).log()).sum(1).mean()
    assert float(divergence(a, b, 1)) == pytest.approx(float(want), rel=1e-5)
    assert float(divergence(b + 3.0, b, 1)) == pytest.approx(0.0, abs=1e-6)
    assert float(divergence(a.movedim(1, -1), b.movedim(1, -1), -1)) == pytest.approx(float(want))
