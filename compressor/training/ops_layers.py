"""Convolutions, pooling, matrix products and norms as ONNX defines them, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compressor.training.ops_recurrent import text

if TYPE_CHECKING:
    from torch import Tensor

Attributes = Mapping[str, Any]
Op = Callable[..., Any]


def _pads(a: Attributes, size: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis of `size`."""
    rank = len(kernel)
    auto = text(a.get("auto_pad", "NOTSET"))
    if auto == "VALID":
        return [0] * rank, [0] * rank
    if auto == "NOTSET":
        pads = list(a.get("pads", [0] * 2 * rank))
        return pads[:rank], pads[rank:]
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    first, last = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        less, more = total // 2, total - total // 2
        first.append(less if auto == "SAME_UPPER" else more)
        last.append(more if auto == "SAME_UPPER" else less)
    return first, last


def _padded(x: Tensor, first: Sequence[int], last: Sequence[int], value: float = 0.0) -> Tensor:
    from torch.nn import functional as f

    flat = [end for pair in zip(reversed(first), reversed(last), strict=True) for end in pair]
    return f.pad(x, flat, value=value)


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    from torch.nn import functional as f

    rank = weight.dim() - 2
    first, last = _pads(a, x.shape[2:], weight.shape[2:])
    if first != last:
        x, first = _padded(x, first, last), [0] * rank
    run = (f.conv1d, f.conv2d, f.conv3d)[rank - 1]
    return run(
        x, weight, bias, tuple(a.get("strides", [1] * rank)), tuple(first),
        tuple(a.get("dilations", [1] * rank)), a.get("group", 1),
    )  # fmt: skip


def _conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    from torch.nn import functional as f

    rank = weight.dim() - 2
    pads = list(a.get("pads", [0] * 2 * rank))
    run = (f.conv_transpose1d, f.conv_transpose2d, f.conv_transpose3d)[rank - 1]
    more = list(a.get("output_padding", [0] * rank))
    y = run(
        x, weight, bias, tuple(a.get("strides", [1] * rank)), 0,
        tuple(more), a.get("group", 1), tuple(a.get("dilations", [1] * rank)),
    )  # fmt: skip
    for axis in range(rank):
        size = y.shape[2 + axis] - pads[axis] - pads[rank + axis]
        y = y.narrow(2 + axis, pads[axis], size)
    return y


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    from torch.nn import functional as f

    kernel = list(a["kernel_shape"])
    rank = len(kernel)
    first, last = _pads(a, x.shape[2:], kernel)
    x = _padded(x, first, last, -math.inf) if any((*first, *last)) else x
    run = (f.max_pool1d, f.max_pool2d, f.max_pool3d)[rank - 1]
    return run(
        x, kernel, list(a.get("strides", [1] * rank)), 0,
        list(a.get("dilations", [1] * rank)), bool(a.get("ceil_mode", 0)),
    )  # fmt: skip


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    import torch
    from torch.nn import functional as f

    kernel = list(a["kernel_shape"])
    rank = len(kernel)
    first, last = _pads(a, x.shape[2:], kernel)
    run = (f.avg_pool1d, f.avg_pool2d, f.avg_pool3d)[rank - 1]
    strides, up = list(a.get("strides", [1] * rank)), bool(a.get("ceil_mode", 0))
    if not any((*first, *last)):
        return run(x, kernel, strides, 0, up)
    y = run(_padded(x, first, last), kernel, strides, 0, up)
    if a.get("count_include_pad", 0):
        return y
    ones = _padded(torch.ones(1, 1, *x.shape[2:]), first, last)
    return y / run(ones, kernel, strides, 0, up)


def _gemm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    left = x.t() if a.get("transA", 0) else x
    right = weight.t() if a.get("transB", 0) else weight
    y = a.get("alpha", 1.0) * (left @ right)
    return y if bias is None else y + a.get("beta", 1.0) * bias


def _batch_norm(
    a: Attributes, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    from torch.nn import functional as f

    return f.batch_norm(x, mean, variance, scale, shift, False, 0.0, a.get("epsilon", 1e-5))


def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    from torch.nn import functional as f

    axis = a.get("axis", -1) % x.dim()
    shape = x.shape[axis:]
    scale = scale.expand(shape)
    moved = None if shift is None else shift.expand(shape)
    return f.layer_norm(x, shape, scale, moved, a.get("epsilon", 1e-5))


def _instance_norm(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    from torch.nn import functional as f

    return f.instance_norm(x, weight=scale, bias=shift, eps=a.get("epsilon", 1e-5))


def _group_norm(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    from torch.nn import functional as f

    return f.group_norm(x, a["num_groups"], scale, shift, a.get("epsilon", 1e-5))


LAYERS: dict[str, Op] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda _, x: x.amax(tuple(range(2, x.dim())), keepdim=True),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda _, x, y: x @ y,
    "MaxPool": _max_pool,
}
