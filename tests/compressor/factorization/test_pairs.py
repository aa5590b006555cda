"""Pairs of layers: the same function at full rank, rebuilt from an untouched module."""
# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from torch import nn

from compressor.factorization import pairs

LAYERS = {
    "linear": (lambda: nn.Linear(9, 5), (3, 7, 9)),
    "wide linear": (lambda: nn.Linear(5, 9, bias=False), (3, 5)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 9)),
    "pointwise": (lambda: nn.Conv2d(4, 6, 1, bias=False), (2, 4, 5, 5)),
    "dilated": (lambda: nn.Conv1d(4, 6, 3, padding="same", dilation=2), (2, 4, 9)),
    "circular": (lambda: nn.Conv2d(4, 6, (1, 3), padding_mode="circular"), (2, 4, 5, 5)),
    "volume": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_pair_of_full_rank_computes_the_same(name):
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = build(), torch.randn(shape)
    left, values, right = torch.linalg.svd(pairs.matrix(layer), full_matrices=False)
    pair = pairs.filled(layer, right, left * values)
    torch.testing.assert_close(pair(x), layer(x))
    torch.testing.assert_close(pairs.matrix(pair), pairs.matrix(layer), atol=1e-6, rtol=1e-5)
    assert pairs.widths(pair) == pairs.widths(layer)


def test_a_pair_is_made_from_a_pair():
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    pair = pairs.blank(pairs.blank(layer, 5), 2)
    assert pair.reduce.stride == (2, 2)
    assert pair(torch.zeros(1, 4, 9, 9)).shape == layer(torch.zeros(1, 4, 9, 9)).shape
    assert pairs.full_rank(pair) == 2


def test_frozen_layers_stay_frozen():
    pair = pairs.blank(nn.Linear(4, 4).requires_grad_(False), 2)
    assert not any(p.requires_grad for p in pair.parameters())


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 3), nn.ReLU()]
)
def test_what_has_no_pair(layer):
    assert not pairs.splittable(layer)


def test_what_does_not_fit_is_not_rebuilt():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    pairs.rebuild(module, {"0": 3, "1": 1, "2": 5, "there": 1})
    assert pairs.ranks(module) == {"0": 3}


@pytest.mark.parametrize("stored", [[], {"a": 0}, {"a": 1.0}, {"a": True}, {1: 1}])
def test_what_is_not_a_table_of_ranks(stored):
    assert not pairs.valid(stored)


def test_torchs_fused_encoder_is_told_to_call_its_layers():
    module = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    mask = torch.tensor([[False, False, True]])
    pairs.put(module, "layers.0.linear1", pairs.blank(module.layers[0].linear1, 2))
    with torch.no_grad():
        found = module.eval()(torch.zeros(1, 3, 8), src_key_padding_mask=mask)
    assert found.shape == (1, 3, 8)
