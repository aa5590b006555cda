"""Spectra on data: the best pair there is, whichever moment was collected."""
# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from torch import nn

from compressor.factorization import pairs
from compressor.factorization.candidates import select
from compressor.factorization.spectrum import collect, of_data, of_weights, pair_of


def correlated(rows, width, seed=0):
    """Inputs whose variance lies in a few directions, not about zero."""
    torch.manual_seed(seed)
    mix = torch.randn(width, width) * torch.logspace(0, -2, width)[:, None]
    return torch.randn(rows, width) @ mix + torch.randn(width)


def seen(layer, x):
    module = nn.Sequential(layer)
    found, _ = select(module, [x[:2]], ())
    return collect(module, found, [[part] for part in x.split(64)], 0)["0"]


def error(pair, layer, x):
    with torch.no_grad():
        return float((pair(x) - layer(x)).square().mean())


@pytest.mark.parametrize("shape", [(24, 12), (12, 24)], ids=["outputs", "inputs"])
@pytest.mark.parametrize("bias", [True, False])
def test_on_its_data_a_pair_is_as_good_as_the_whitened_svd(shape, bias):
    torch.manual_seed(1)
    layer, x = nn.Linear(*shape, bias=bias), correlated(4000, shape[0])
    moments = seen(layer, x)
    assert moments.of_inputs == (shape[0] < shape[1])
    assert moments.rows == 4000
    y = layer(x).detach().double()
    values = torch.linalg.svdvals(y - y.mean(0) if bias else y)  # Eckart-Young
    best = float(values[4:].square().sum()) / y.numel()
    assert error(pair_of(layer, of_data(layer, moments), 4), layer, x) == pytest.approx(
        best, rel=0.05
    )
    share = float(values[4:].square().sum() / values.square().sum())
    assert of_data(layer, moments).lost(4) == pytest.approx(share, rel=0.1)


LAYERS = {
    "linear": lambda: nn.Linear(24, 12),
    "strided": lambda: nn.Conv1d(24, 12, 1, stride=2),
    "wider": lambda: nn.Conv1d(24, 36, 1),
    "kernel of 3": lambda: nn.Conv1d(24, 12, 3),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_data_beats_the_weights_alone(kind):
    torch.manual_seed(2)
    layer, x = LAYERS[kind](), correlated(2048, 24)
    x = x if isinstance(layer, nn.Linear) else x.reshape(64, 32, 24).transpose(1, 2).contiguous()
    fitted = pair_of(layer, of_data(layer, seen(layer, x)), 4)
    plain = pair_of(layer, of_weights(layer), 4)
    assert error(fitted, layer, x) < 0.5 * error(plain, layer, x)


def test_without_data_it_is_the_svd():
    layer = nn.Linear(12, 8)
    pair = pair_of(layer, of_weights(layer), 3)
    left, values, right = torch.linalg.svd(pairs.matrix(layer), full_matrices=False)
    best = (left[:, :3] * values[:3]) @ right[:3]
    torch.testing.assert_close(pairs.matrix(pair), best, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pair.expand.bias, layer.bias)


def test_few_samples_do_not_make_directions_empty():
    layer, x = nn.Linear(24, 24), correlated(6, 24)
    assert of_data(layer, seen(layer, x)).lost(6) > 1e-3


def test_between_the_two_values_are_balanced():
    torch.manual_seed(2)
    layer, x = nn.Linear(24, 24), correlated(2000, 24)
    found = of_data(layer, seen(layer, x))
    pair = pair_of(layer, found, 12)
    between = pair.reduce(x).std(0)
    assert between.max() / between.min() < (found.energies[0] / found.energies[11]) ** 0.4
