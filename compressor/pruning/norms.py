"""Batch-norm statistics of a pruned module, re-estimated on data.

Removing channels shifts what reaches every later batch norm; new running means and variances
alone recover most of the loss (Li et al., "EagleEye", ECCV 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from compressor.modules import frozen
from compressor.sources.torch_io import call

if TYPE_CHECKING:
    from torch import Tensor, nn


def tracked(module: nn.Module) -> list[nn.Module]:
    """The batch norms of `module` that keep running statistics; no frozen ones unless all is."""
    from torch import nn

    kinds = (nn.modules.batchnorm._BatchNorm,)
    found = [m for m in module.modules() if isinstance(m, kinds) and m.track_running_stats]
    return found if frozen(module) else [m for m in found if not frozen(m)]


def reestimate(module: nn.Module, batches: Iterable[Sequence[Tensor]]) -> int:
    """Replace the running statistics by plain averages over `batches`; returns the samples seen.

    Everything else (dropout, weights) stays in eval mode. Batches of one sample are left out.
    """
    import torch

    norms = tracked(module)
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    seen = 0
    with torch.no_grad():
        for batch in batches:
            if batch[0].shape[0] > 1:
                call(module, batch)
                seen += int(batch[0].shape[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
    return seen
