"""ONNX operators as differentiable torch functions, for the graphs that compression meets.

Each takes the node's attributes and its inputs (None for one left out) and returns its outputs.
Shapes are computed with tensors, as in ONNX, so free dimensions stay free. What a graph computes
here is compared with ONNX Runtime before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compressor.training.ops_layers import LAYERS, Attributes, Op
from compressor.training.ops_recurrent import RECURRENT, text

if TYPE_CHECKING:
    from torch import Tensor


def ops() -> dict[str, Op]:
    """Operator type → function(attributes, *inputs)."""
    return {**_pointwise(), **_moving(), **_shapes(), **_reductions(), **LAYERS, **RECURRENT}


def _pointwise() -> dict[str, Op]:
    import torch
    from torch.nn import functional as f

    one = {
        "Abs": torch.abs, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp,
        "Floor": torch.floor, "HardSwish": f.hardswish, "Identity": lambda x: x,
        "IsNaN": torch.isnan, "Log": torch.log, "Mish": f.mish, "Neg": torch.neg,
        "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu,
        "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
        "Softplus": f.softplus, "Softsign": f.softsign, "Sqrt": torch.sqrt, "Tanh": torch.tanh,
    }  # fmt: skip
    two = {
        "Add": torch.add, "And": torch.logical_and, "Equal": torch.eq, "Greater": torch.gt,
        "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "Mul": torch.mul,
        "Or": torch.logical_or, "Pow": torch.pow, "Sub": torch.sub,
    }  # fmt: skip
    made: dict[str, Op] = {name: _plain(function) for name, function in {**one, **two}.items()}
    return made | {
        "Cast": lambda a, x: x.to(_dtype(a["to"])),
        "Clip": lambda a, x, low=None, high=None: _clip(a, x, low, high),
        "Div": lambda _, x, y: _divide(x, y),
        "Dropout": lambda _, x, *__: x,
        "Elu": lambda a, x: f.elu(x, a.get("alpha", 1.0)),
        "Gelu": lambda a, x: f.gelu(x, approximate=text(a.get("approximate", "none"))),
        "HardSigmoid": lambda a, x: (x * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0, 1),
        "LeakyRelu": lambda a, x: f.leaky_relu(x, a.get("alpha", 0.01)),
        "LogSoftmax": lambda a, x: f.log_softmax(x, a.get("axis", -1)),
        "Max": lambda _, *x: _fold(torch.maximum, x),
        "Mean": lambda _, *x: _fold(torch.add, x) / len(x),
        "Min": lambda _, *x: _fold(torch.minimum, x),
        "Mod": lambda a, x, y: torch.fmod(x, y) if a.get("fmod") else torch.remainder(x, y),
        "PRelu": lambda _, x, slope: torch.where(x < 0, x * slope, x),
        "Softmax": lambda a, x: f.softmax(x, a.get("axis", -1)),
        "Sum": lambda _, *x: _fold(torch.add, x),
        "Where": lambda _, mask, x, y: torch.where(mask, x, y),
    }


def _plain(function: Op) -> Op:
    return lambda _, *inputs: function(*inputs)


def _fold(function: Op, parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = function(total, part)
    return total


def _divide(x: Tensor, y: Tensor) -> Tensor:
    import torch

    if x.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def _clip(a: Attributes, x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    import torch

    least = low if low is not None else a.get("min")
    most = high if high is not None else a.get("max")
    return x if least is None and most is None else torch.clamp(x, least, most)


def _dtype(number: int) -> Any:
    import onnx
    import torch

    name = onnx.helper.tensor_dtype_to_np_dtype(number).name
    return getattr(torch, {"bool": "bool", "bfloat16": "bfloat16"}.get(name, name))


# -------------------------------------------------------------------------- moving and shaping


def _moving() -> dict[str, Op]:
    import torch

    return {
        "Concat": lambda a, *x: torch.cat(x, a["axis"]),
        "DepthToSpace": _depth_to_space,
        "Einsum": lambda a, *x: torch.einsum(text(a["equation"]), *x),
        "Expand": lambda _, x, s: x.expand(torch.broadcast_shapes(x.shape, tuple(s.tolist()))),
        "Flatten": lambda a, x: x.reshape(math.prod(x.shape[: a.get("axis", 1)]), -1),
        "Gather": _gather,
        "GatherElements": lambda a, x, i: x.gather(a.get("axis", 0), i),
        "Pad": _pad,
        "Reshape": _reshape,
        "Resize": _resize,
        "Slice": _slice,
        "Split": _split,
        "Squeeze": _squeeze,
        "Tile": lambda _, x, n: x.repeat(tuple(n.tolist())),
        "Transpose": lambda a, x: x.permute(a.get("perm") or tuple(range(x.dim()))[::-1]),
        "Trilu": lambda a, x, k=None: (torch.triu if a.get("upper", 1) else torch.tril)(
            x, 0 if k is None else int(k)
        ),
        "Unsqueeze": _unsqueeze,
    }  # fmt: skip


def _shapes() -> dict[str, Op]:
    import torch

    return {
        "ConstantOfShape": _constant_of_shape,
        "Range": lambda _, start, end, step: torch.arange(
            start.item(), end.item(), step.item(), dtype=start.dtype
        ),
        "Shape": lambda a, x: torch.tensor(x.shape)[a.get("start", 0) : a.get("end")],
        "Size": lambda _, x: torch.tensor(x.numel()),
    }


def _constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    import onnx
    import torch

    value = onnx.numpy_helper.to_array(a["value"]) if "value" in a else None
    if value is None:
        return torch.zeros(tuple(shape.tolist()))
    return torch.from_numpy(value.copy()).reshape(()).expand(tuple(shape.tolist()))


def _depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = a["blocksize"]
    if text(a.get("mode", "DCR")) == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.dim()
    places = indices.long() % x.shape[axis]
    taken = x.index_select(axis, places.reshape(-1))
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _pad(
    a: Attributes,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    from torch.nn import functional as f

    ends = pads.tolist() if pads is not None else list(a["pads"])
    half = len(ends) // 2
    which = [int(i) % x.dim() for i in axes.tolist()] if axes is not None else list(range(half))
    both = {axis: (ends[i], ends[i + half]) for i, axis in enumerate(which)}
    flat = [end for axis in reversed(range(x.dim())) for end in both.get(axis, (0, 0))]
    mode = text(a.get("mode", "constant"))
    if mode == "constant":
        return f.pad(x, flat, value=a.get("value", 0.0) if value is None else value.item())
    while len(flat) > 2 and not any(flat[-2:]):
        flat = flat[:-2]
    return f.pad(x, flat, mode={"edge": "replicate", "wrap": "circular"}.get(mode, mode))


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    keep = not a.get("allowzero", 0)
    sizes = [x.shape[i] if keep and n == 0 else n for i, n in enumerate(shape.tolist())]
    return x.reshape(sizes)


def _resize(
    a: Attributes,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    from torch.nn import functional as f

    del roi
    mode, place = (
        text(a.get("mode", "nearest")),
        text(a.get("coordinate_transformation_mode", "half_pixel")),
    )
    if sizes is not None:
        target = [int(n) for n in sizes.tolist()][-(x.dim() - 2) :]
    else:
        assert scales is not None
        target = [
            math.floor(n * by)
            for n, by in zip(x.shape[2:], scales.tolist()[-(x.dim() - 2) :], strict=True)
        ]
    if mode == "nearest":
        return f.interpolate(x, target, mode="nearest")
    name = {
        "cubic": "bicubic",
        "linear": {3: "linear", 4: "bilinear", 5: "trilinear"}[x.dim()],
    }[mode]
    return f.interpolate(x, target, mode=name, align_corners=place == "align_corners")


def _slice(
    a: Attributes,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    import torch

    begin = starts.tolist() if starts is not None else a["starts"]
    end = ends.tolist() if ends is not None else a["ends"]
    which = axes.tolist() if axes is not None else a.get("axes", range(len(begin)))
    step = steps.tolist() if steps is not None else [1] * len(begin)
    for axis, first, last, by in zip(which, begin, end, step, strict=True):
        size = x.shape[axis]
        if by > 0:
            low, high, _ = slice(first, last, by).indices(size)
            x = x.narrow(axis, low, max(0, high - low))
            x = x if by == 1 else x.index_select(axis, torch.arange(0, x.shape[axis], by))
        else:
            last = last if last >= -size else None  # past the first one
            x = x.index_select(axis, torch.tensor(range(*slice(first, last, by).indices(size))))
    return x


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    import torch

    axis = a.get("axis", 0)
    parts = sizes.tolist() if sizes is not None else a.get("split")
    if parts is None:
        each = -(-x.shape[axis] // a["outputs"])
        parts = each
    return tuple(torch.split(x, parts if isinstance(parts, int) else list(parts), axis))


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    which = axes.tolist() if axes is not None else a.get("axes")
    return x.squeeze() if which is None else x.squeeze(tuple(which))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    which = axes.tolist() if axes is not None else a["axes"]
    rank = x.dim() + len(which)
    for axis in sorted(int(i) % rank for i in which):
        x = x.unsqueeze(axis)
    return x


# ------------------------------------------------------------------------------- reductions


def _reductions() -> dict[str, Op]:
    import torch

    def sum_of(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        return x.sum(axes, keepdim=keep)

    return {
        "ArgMax": lambda a, x: x.argmax(a.get("axis", 0), keepdim=bool(a.get("keepdims", 1))),
        "ReduceL1": _reduce(lambda x, axes, keep: sum_of(x.abs(), axes, keep)),
        "ReduceL2": _reduce(lambda x, axes, keep: sum_of(x * x, axes, keep).sqrt()),
        "ReduceLogSumExp": _reduce(torch.logsumexp),
        "ReduceMax": _reduce(torch.amax),
        "ReduceMean": _reduce(torch.mean),
        "ReduceMin": _reduce(torch.amin),
        "ReduceSum": _reduce(sum_of),
        "ReduceSumSquare": _reduce(lambda x, axes, keep: sum_of(x * x, axes, keep)),
    }  # fmt: skip


def _reduce(function: Op) -> Op:
    def reduce(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        which = axes.tolist() if axes is not None else list(a.get("axes", ()))
        if not which and a.get("noop_with_empty_axes"):
            return x
        chosen = tuple(int(i) % x.dim() for i in which) or tuple(range(x.dim()))
        return function(x, chosen, bool(a.get("keepdims", 1)))

    return reduce
