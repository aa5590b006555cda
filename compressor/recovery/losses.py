"""How far a compressed module's outputs are from the original's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compressor.torch_io import OutputKind

if TYPE_CHECKING:
    from torch import Tensor


def distance(
    outputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    kinds: Sequence[OutputKind],
    temperature: float,
) -> Tensor:
    """Mean over the outputs: KL divergence for class scores, normalised squared error for values.

    KL is taken at `temperature` and multiplied by its square (Hinton et al., arXiv 1503.02531,
    2015), so that its gradients do not depend on it. Values are in units of the original's
    variance in the batch.
    """
    parts = [
        _divergence(out.float(), aim.float(), temperature)
        if kind == "classes"
        else _error(out, aim)
        for out, aim, kind in zip(outputs, wanted, kinds, strict=True)
        if kind != "other"
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / len(parts)


def _divergence(out: Tensor, aim: Tensor, temperature: float) -> Tensor:
    from torch.nn import functional

    student = (out / temperature).log_softmax(1)
    teacher = (aim / temperature).log_softmax(1)
    loss = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return loss * temperature**2


def _error(out: Tensor, aim: Tensor) -> Tensor:
    from torch.nn import functional

    aim = aim.float()
    scale = aim.var(correction=0).clamp_min(1e-8)
    return functional.mse_loss(out.float(), aim) / scale
