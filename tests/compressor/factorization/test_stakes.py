"""What a layer's lost energy is worth, against what the outputs lose when it is replaced."""

import pytest
import torch
from torch import nn

from compressor.factorization.candidates import select
from compressor.factorization.pairs import put
from compressor.factorization.spectrum import collect, of_data, pair_of
from compressor.factorization.stakes import stakes
from compressor.recovery.losses import distance


class Branches(nn.Module):
    """Two layers alike, of which one counts a thousand times as much at the output."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loud(x) + 1e-3 * self.quiet(x)


@pytest.fixture
def given():
    return list(torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(0)))


def measured(module, given):
    batches = [[x] for x in given]
    found, _ = select(module, batches[0], ())
    seen = collect(module, found, batches, 0)
    spectra = {one.name: of_data(one.layer, seen[one.name]) for one in found}
    return found, spectra, stakes(module, found, spectra, batches, lambda *_: None)


def test_weights_follow_what_the_outputs_lose(given):
    torch.manual_seed(1)
    _, _, weights = measured(Branches(), given)
    assert weights["loud"] / weights["quiet"] == pytest.approx(1e6, rel=0.5)


def test_a_weight_times_the_share_lost_is_the_change_of_the_outputs(given):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 8)).eval()
    module.requires_grad_(False)
    found, spectra, weights = measured(module, given)
    wanted = [module(x) for x in given]
    for one in found:
        rank = one.most // 2
        put(module, one.name, pair_of(one.layer, spectra[one.name], rank))
        changes = [float(distance([module(x)], [y])) for x, y in zip(given, wanted, strict=True)]
        put(module, one.name, one.layer)
        expected = sum(changes) / len(changes)
        assert weights[one.name] * spectra[one.name].lost(rank) == pytest.approx(expected, rel=1e-4)


def test_the_module_is_left_as_it_was(given):
    module = Branches().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    measured(module, given)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
