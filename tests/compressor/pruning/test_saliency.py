"""Saliencies against values worked out by hand."""
# ruff: noqa: E402

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

from torch import nn

from compressor.pruning import saliency
from compressor.pruning.graph import find_groups
from compressor.pruning.removal import zero
from compressor.pruning.select import removable


def net(widths: tuple[int, ...] = (6, 8, 4)) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.Linear(widths[1], widths[2])).eval()


def groups_of(module: nn.Module, x: torch.Tensor) -> list:
    return removable(module, [x], find_groups(module, [x]))[0]


def test_hessian_is_the_expected_loss_of_a_linear_net() -> None:
    module, x = net(), torch.randn(4096, 6)
    (group,) = groups_of(module, x[:2])
    batches = [[x[i : i + 64]] for i in range(0, 4096, 64)] * 8
    found = saliency.hessian(module, [group], batches, ["values"], seed=1)[group.name]
    with torch.no_grad():
        first, second = module[0].weight.double(), module[1].weight.double()
        inner, out = module[0](x), module(x)
        unit = 1 / (float(out.std()) ** 2 * out.shape[1])  # of one squared output deviation
        into = second.square().sum(0)[:, None] * x.double().square().mean(0)[None, :]
        of_first = (first.square() * into).sum(1)
        of_second = (second.square().sum(0)) * inner.double().square().mean(0)
        wanted = 0.5 * unit * (of_first + of_second)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0.15)


def test_hessian_leaves_frozen_weights_frozen() -> None:
    module, x = net(), torch.randn(32, 6)
    groups = groups_of(module, x[:2])
    module[0].weight.requires_grad_(False)
    found = saliency.hessian(module, groups, [[x]], ["values"], seed=0)
    assert not module[0].weight.requires_grad
    assert all((values > 0).all() for values in found.values())


def test_lamp_is_a_share_of_what_is_not_smaller() -> None:
    module = net((6, 3, 4))
    with torch.no_grad():
        for layer, side in ((module[0], 0), (module[1], 1)):
            layer.weight.zero_()
            layer.weight.transpose(0, side)[:, 0] = torch.tensor([2.0, 1.0, 3.0]) / 2**0.5
    groups = groups_of(module, torch.zeros(2, 6))
    (found,) = saliency.lamp(module, groups).values()
    np.testing.assert_allclose(found, [4 / 13, 1 / 14, 1.0], rtol=1e-6)


class Called(nn.Module):
    """Every layer is called with a keyword, as some code does, or none is."""

    def __init__(self, keywords: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.rnn, self.last = nn.GRU(8, 5, batch_first=True), nn.Linear(5, 4)
        self.keywords = keywords

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.keywords:
            return self.last(self.rnn(self.norm(self.first(x))[:, None], None)[0][:, 0])
        inner = self.norm(input=self.first(input=x))
        return self.last(input=self.rnn(hx=None, input=inner[:, None])[0][:, 0])


def test_layers_called_with_keywords_are_as_those_that_are_not() -> None:
    x, found = torch.randn(32, 6), []
    for keywords in (True, False):
        module = Called(keywords).eval()
        groups = groups_of(module, x[:2])
        assert [g.name for g in groups] == ["first", "rnn"]
        found.append(saliency.taylor(module, groups, [[x]], ["values"], seed=0))
    for name, values in found[0].items():
        assert (values > 0).all()
        np.testing.assert_array_equal(found[1][name], values)


class Recurrent(nn.Module):
    """One LSTM feeds another: no dense layer sees the first one's units."""

    def __init__(self, **more: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.LSTM(6, 8, batch_first=True, **more)
        outputs = 16 if self.first.bidirectional else 8
        self.second, self.last = nn.LSTM(outputs, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x)[0])[0][:, -1])


@pytest.mark.parametrize("more", [{}, {"bidirectional": True, "num_layers": 2}])
def test_recurrent_weights_of_a_unit_count_once_each(more: dict) -> None:
    module, x = Recurrent(**more).eval(), torch.randn(2, 4, 6)
    (first,) = (g for g in groups_of(module, x) if g.name == "first")
    found = saliency.l2(module, [first])["first"].reshape(first.repeats, 8).sum(0)
    wanted = []
    for unit in range(8):  # a copy without the unit's weights has lost so much
        whole, without = Recurrent(**more), Recurrent(**more)
        zero(without, [first], {"first": list(range(unit, first.width, 8))})
        pairs = zip(whole.parameters(), without.parameters(), strict=True)
        wanted.append(sum(float((a - b).detach().square().sum()) for a, b in pairs if a.dim() == 2))
    np.testing.assert_allclose(found / found.mean(), np.array(wanted) / np.mean(wanted), rtol=1e-5)


@pytest.mark.parametrize("kind", ["l2", "lamp", "hessian"])
def test_units_between_recurrent_layers_are_told_apart(kind: str) -> None:
    module, x = Recurrent().eval(), torch.randn(32, 4, 6)
    groups = groups_of(module, x[:2])
    zero(module, groups, {"first": [5], "second": [2]})
    if kind == "hessian":
        found = saliency.hessian(module, groups, [[x]], ["values"], seed=0)
    else:
        found = getattr(saliency, kind)(module, groups)
    for name, dead in (("first", 5), ("second", 2)):
        assert found[name][dead] == 0
        assert (np.delete(found[name], dead) > 0).all()
