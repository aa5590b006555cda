"""Coupled channels and costs: predicted before pruning, counted after it."""
# ruff: noqa: E402

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

from torch import nn
from torch.nn import functional

from compressor.pruning import costs, graph, select
from compressor.pruning import removal as removal_
from tests import small_modules as sm


class Heads(nn.Module):
    """Attention whose head width follows the weights: it runs when pruned, with heads mixed up."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 32) for _ in range(3))
        self.out = nn.Linear(32, 3)

    def forward(self, x):
        split = [f(x).view(len(x), 5, 4, -1).transpose(1, 2) for f in (self.q, self.k, self.v)]
        y = functional.scaled_dot_product_attention(*split).transpose(1, 2)
        return self.out(y.reshape(len(x), 5, -1))


class Stack(nn.Module):
    """Layers in a ModuleList, which itself is never called."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def usable(module, x):
    example = [torch.from_numpy(x)]
    return example, *select.removable(module, example, graph.find_groups(module, example))


@pytest.mark.parametrize("name", sorted(sm.CASES))
@pytest.mark.parametrize("measure", costs.MEASURES)
def test_predicted_costs_are_the_counted_ones(name, measure):
    module = sm.build(name)
    example, groups, _ = usable(module, sm.feeds(name, 2))
    removal = {g.name: graph.spread(g, range(g.units // 4)) for g in groups}
    smaller = copy.deepcopy(module)
    removal_.remove(smaller, groups, removal)
    model = costs.cost_model(module, example, groups, measure)
    assert model({}) == pytest.approx(costs.count(module, example, measure))
    removed = {group: len(gone) for group, gone in removal.items()}
    assert model(removed) == pytest.approx(costs.count(smaller, example, measure))


@pytest.mark.parametrize("name", ["residual", "dense", "separable", "unet", "mlp"])
def test_removing_is_zeroing_where_a_group_says_so(name):
    module, x = sm.build(name), sm.feeds(name, 3)
    _, groups, _ = usable(module, x)
    rng = np.random.default_rng(0)
    removal = {g.name: sorted(rng.permutation(g.width)[: g.width // 3].tolist()) for g in groups}
    assert all(g.exact and g.repeats == 1 for g in groups)
    smaller, zeroed = copy.deepcopy(module), copy.deepcopy(module)
    removal_.remove(smaller, groups, removal)
    removal_.zero(zeroed, groups, removal)
    np.testing.assert_allclose(sm.outputs(smaller, x)[0], sm.outputs(zeroed, x)[0], atol=1e-4)


def test_channels_behind_attention_heads_are_left_alone():
    torch.manual_seed(0)
    _, groups, refused = usable(Heads(), np.random.default_rng(0).random((2, 5, 16), np.float32))
    assert groups == []
    assert any("reshape into heads" in r.why for r in refused)


def test_macs_of_a_convolution_by_hand():
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    found = costs.layer_macs(nn.Sequential(conv), [torch.zeros(2, 4, 5, 5)])
    assert found == {"0": 6 * 5 * 5 * 2 * 9}


def test_tied_weights_count_once():
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    assert [costs.count(module, [torch.zeros(1, 4)], m) for m in costs.MEASURES] == [32, 16, 64]


def test_frozen_layers_are_traced_and_stay_frozen():
    module = sm.build("residual").requires_grad_(False)
    _, groups, _ = usable(module, sm.feeds("residual", 2))
    assert groups
    assert not any(p.requires_grad for p in module.parameters())


def test_layers_in_a_list_count_once():
    found = costs.layer_macs(Stack(), [torch.zeros(2, 4)])
    assert found == {"layers.0": 16, "layers.1": 16}
