"""Generator of a GAN: garments from 32 random numbers; Fashion-MNIST.

DCGAN (Radford, Metz and Chintala, 2016) with spectral norm in the discriminator, which is thrown
away after training. There are no labels: a compressed generator is held against the original's
pictures of the same numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from examples.zoo import data
from examples.zoo.about import About, Roles, splits

ABOUT = About(
    kind="gan generator",
    architecture="32 numbers, a linear layer to 128 channels of 7x7, transposed convolutions",
    source=data.FASHION,
    licence=data.FASHION_LICENCE,
    metric="sqnr",
    inputs={"numbers": ["batch", 32]},
    outputs=["picture"],
)
NUMBERS, WIDTH, STEPS, BATCH = 32, 128, 1500, 32


class Generator(nn.Module):
    """Numbers [n, 32] → pictures [n, 1, 28, 28] in 0-1."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(NUMBERS, WIDTH * 49, bias=False)
        self.body = nn.Sequential(
            nn.Unflatten(1, (WIDTH, 7, 7)), nn.BatchNorm2d(WIDTH), nn.ReLU(),
            nn.ConvTranspose2d(WIDTH, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 1, 3, 1, 1),
        )  # fmt: skip

    def forward(self, numbers: Tensor) -> Tensor:
        return self.body(self.start(numbers)).sigmoid()


def build() -> nn.Module:
    return Generator()


def _numbers(seed: int, n: int) -> dict[str, np.ndarray]:
    return {"numbers": np.random.default_rng(seed).standard_normal((n, NUMBERS), np.float32)}


def arrays() -> Roles:
    return data.split(_numbers(0, 12000), _numbers(1, 2000))


training, calibration, selection, evaluation = splits(arrays)


def _discriminator() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((1, 24), (24, 48), (48, 96)):
        layers += [spectral_norm(nn.Conv2d(before, after, 4, 2, 1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), spectral_norm(nn.Linear(96 * 9, 1)))


def train(module: nn.Module) -> None:
    """Hinge losses; the generator's averaged weights are what is kept."""
    judge = _discriminator()
    optimizers = [torch.optim.Adam(m.parameters(), 4e-4, (0.5, 0.99)) for m in (module, judge)]
    kept = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    images = torch.from_numpy(data.fashion("train")[0][:, None].copy())
    random = torch.Generator().manual_seed(0)
    module.train()
    for _ in range(STEPS):
        real = images[torch.randint(len(images), (BATCH,), generator=random)]
        made = module(torch.randn(BATCH, NUMBERS, generator=random))
        loss = (1 - judge(real)).relu().mean() + (1 + judge(made.detach())).relu().mean()
        _step(optimizers[1], loss)
        _step(optimizers[0], -judge(made).mean())
        kept.update_parameters(module)
    module.load_state_dict(kept.module.state_dict())


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
