"""One training loop for every model: AdamW, one cycle, seeded, on one thread."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from examples.zoo.about import Arrays

Loss = Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor]


def cross_entropy(smoothing: float = 0.05) -> Loss:
    """Of the module's logits; classes are the last axis of outputs of rank 3, else axis 1."""
    entropy = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels = batch.pop("labels")
        logits = module(**batch)
        if logits.ndim == 3:
            logits, labels = logits.flatten(0, 1), labels.flatten()
        return entropy(logits, labels)

    return loss


def train(
    module: nn.Module,
    data: Arrays,
    loss: Loss,
    *,
    epochs: float,
    lr: float = 2e-3,
    batch: int = 128,
    decay: float = 0.02,
    flip: bool = False,
    half: bool = False,
) -> None:
    """Train in place.

    `flip` mirrors half of the batches of pictures; `half` computes in bfloat16, channels last,
    where the processor has it: twice as fast for many small convolutions.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    n = len(next(iter(data.values())))
    steps = math.ceil(epochs * n / batch)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, max(steps, 2), pct_start=0.2)
    order = np.zeros(0, np.int64)
    half = half and torch.cpu._is_avx512_bf16_supported()
    if half:
        module.to(memory_format=torch.channels_last)
    module.train()
    for step in range(steps):
        if len(order) < batch:
            order = np.concatenate([order, rng.permutation(n)])
        chosen, order = order[:batch], order[batch:]
        feeds = {name: torch.from_numpy(array[chosen]) for name, array in data.items()}
        if flip and rng.random() < 0.5:
            feeds = {k: v.flip(-1) if v.ndim == 4 else v for k, v in feeds.items()}
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss(module, feeds)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"  step {step}/{steps} loss {value.item():.4f}", flush=True)
    module.eval().to(memory_format=torch.contiguous_format)
