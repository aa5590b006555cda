from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compressor.quantization.storage import Tensor, keep_in_8_bits

tensors = st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 1)), min_size=1, max_size=20).map(
    lambda rows: [Tensor(f"t{i}", n, noise) for i, (n, noise) in enumerate(rows)]
)


@given(tensors, st.floats(0, 1))
def test_the_share_is_kept(given_tensors, share):
    chosen = keep_in_8_bits(given_tensors, share)
    total = sum(t.elements for t in given_tensors)
    kept = sum(t.elements for t in given_tensors if t.name in chosen)
    assert kept <= (1 - share) * total + 1e-6


def test_small_and_noisy_ones_go_first():
    rows = [Tensor("big", 1000, 0.05), Tensor("first", 20, 0.02), Tensor("quiet", 20, 0.001)]
    assert keep_in_8_bits(rows, 0.975) == {"first"}


def test_all_in_four_bits_if_asked():
    assert keep_in_8_bits([Tensor("a", 10, 1.0)], 1.0) == set()
