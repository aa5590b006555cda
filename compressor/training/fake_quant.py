"""Rounding to a grid whose scale is trained, with gradients that pass the rounding by.

Learned step size quantization (Esser et al., arXiv 1902.08153, 2020). Scales are trained as
exponents: AdamW's steps are then relative ones, which the paper's own gradient scaling is for.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def fake_quantize(
    x: Tensor, scale: Tensor, exponent: Tensor | None, zero: Tensor, low: int, high: int
) -> Tensor:
    """`x` rounded to (integers in low…high, minus `zero`) · scale · exp(exponent).

    Args:
        x: floats of any shape.
        scale: positive, one value, or of a shape that broadcasts against `x`.
        exponent: trained, of the shape of `scale`; None leaves the scale as it is.
        zero: int32, of the shape of `scale`.
        low: smallest integer.
        high: largest integer.
    """
    made: Tensor = _function().apply(x, scale, exponent, zero, low, high)
    return made


@cache
def _function() -> Any:
    import torch

    class FakeQuantize(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(
            ctx: Any,
            x: Tensor,
            scale: Tensor,
            exponent: Tensor | None,
            zero: Tensor,
            low: int,
            high: int,
        ) -> Tensor:
            step = scale if exponent is None else scale * exponent.exp()
            if step.numel() == 1:  # torch's own kernel for this takes twice as long
                at = int(zero)
                y = torch.div(x, float(step)).round_().clamp_(low - at, high - at).mul_(float(step))
            else:
                y = (torch.round(x / step) + zero).clamp_(low, high).sub_(zero).mul_(step)
            ctx.save_for_backward(x, y, step, zero)
            ctx.ends, ctx.trained = (low - 0.5, high + 0.5), exponent is not None
            return y

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            x, y, step, zero = ctx.saved_tensors
            low, high = ((end - zero) * step for end in ctx.ends)
            if step.numel() == 1:
                inside = torch.ops.aten.hardtanh_backward(grad, x, float(low), float(high))
            else:
                inside = grad * ((x >= low) & (x <= high))
            if not ctx.trained:
                return inside, None, None, None, None, None
            # d(y)/d(exponent) is y - x inside the range and y at its ends.
            if step.numel() == 1:
                slope = torch.dot(_flat(grad), _flat(y)) - torch.dot(_flat(inside), _flat(x))
                slope = slope.reshape(step.shape)
            else:
                over = [i for i, n in enumerate(step.shape) if n == 1]
                slope = (grad * y - inside * x).sum(over, keepdim=True)
            return inside, None, slope, None, None, None

    def _flat(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            return tensor.permute(0, 2, 3, 1).reshape(-1)
        return tensor.reshape(-1)

    return FakeQuantize
