"""A model trained in fixed point: torch computes what the integers will.

Weights are rounded to powers of two (one per channel, the exponent with the least squared error),
activations to the formats that calibration found; straight-through estimators (Bengio et al., arXiv
1308.3432, 2013) let gradients through, but not where a value was cut off. Small weights are zeroed
gradually while training (Zhu and Gupta, arXiv 1710.01878, 2017), all at once where the result is
judged, so that the weights that are kept as best are the best as they ship.

Why not brevitas: it would place its quantizers in the torch module, and here a graph may come from
ONNX; its export is QONNX, from which every sum's format had to be found again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from compressor.fixed.build import mean_multiplier
from compressor.fixed.read import FloatLayer, FloatNet
from runtimes.fixed.spec import Format

if TYPE_CHECKING:
    from torch import Tensor

RAMP = 0.6  # share of the training in which weights are zeroed


def weight_fraction(weight: Tensor, bits: int, per_channel: bool) -> Tensor:
    """Fraction bits [channels] that round a weight [channels, …] with the least squared error."""
    import torch

    flat = weight.detach().double().flatten(1) if per_channel else weight.detach().double()[None]
    flat = flat.flatten(1)
    high = max(1, (1 << (bits - 1)) - 1)
    largest = flat.abs().amax(1).clamp_min(2.0**-30)
    first = torch.floor(torch.log2(high / largest))
    best, least = first, torch.full_like(first, torch.inf)
    for more in range(3):
        scale = torch.exp2(first + more)[:, None]
        made = torch.round(flat * scale).clamp(-high, high) / scale
        error = (made - flat).square().sum(1)
        best, least = torch.where(error < least, first + more, best), torch.minimum(error, least)
    return best.expand(weight.shape[0]).contiguous()


@cache
def _function() -> Any:
    import torch

    class Rounded(torch.autograd.Function):  # type: ignore[misc]
        """x as integers in low…high over a scale; no gradient where it was cut off."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, half: float) -> Tensor:
            integers = torch.floor(x * scale + half)
            ctx.save_for_backward((integers >= low) & (integers <= high))
            return integers.clamp_(low, high).div_(scale)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            return grad * ctx.saved_tensors[0], None, None, None, None

    return Rounded


def round_to(x: Tensor, form: Format) -> Tensor:
    """Floats on the grid of a saturating format, with a gradient."""
    half = 0.5 if form.rounding == "RND" else 0.0
    made: Tensor = _function().apply(x, 2.0**form.fraction, form.low, form.high, half)
    return made


def make_student(
    net: FloatNet,
    bits: Mapping[str, int],
    per_channel: bool,
    zero: float,
    steps: int,
) -> Any:
    """A module that computes `net` in fixed point.

    Args:
        net: its weights are where training begins; exact zeros among them stay.
        bits: of each layer's weight, by the layer's name.
        per_channel: a weight's scale is per output channel.
        zero: share of all weights that is zero in the end.
        steps: over how many training steps that share is reached.
    """
    return _class()(net, bits, per_channel, zero, steps)


@cache
def _class() -> Any:
    from torch import nn

    class Student(nn.Module):  # type: ignore[misc]
        def __init__(self, *given: Any) -> None:
            super().__init__()
            _set_up(self, *given)

        share = _share
        threshold = _threshold
        pruned = _pruned
        rounded = _rounded
        bias = _bias
        tensors = _tensors
        _formatted = _formatted
        _computed = _computed
        source = _source
        forward = _forward

    return Student


def _set_up(
    self: Any,
    net: FloatNet,
    bits: Mapping[str, int],
    per_channel: bool,
    zero: float,
    steps: int,
) -> None:
    import torch
    from torch import nn

    self.net, self.bits, self.per_channel = net, dict(bits), per_channel
    self.zero, self.ramp = zero, max(1, int(RAMP * steps))
    self.formats = {}  # tensor → Format
    self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
    self.register_buffer("step", torch.zeros((), dtype=torch.long))
    self.index = {layer.name: i for i, layer in enumerate(net.weighted)}
    for i, layer in enumerate(net.weighted):
        self.weights.append(nn.Parameter(torch.tensor(layer.weight, dtype=torch.float32)))
        self.biases.append(nn.Parameter(torch.tensor(layer.bias, dtype=torch.float32)))
        self.register_buffer(f"alive{i}", torch.tensor(layer.weight != 0))


def _share(self: Any) -> float:
    """Of weights that are zero now: on its way up in training, at its end otherwise."""
    if not self.training:
        return float(self.zero)
    done = min(1.0, float(self.step) / self.ramp)
    return float(self.zero * (1 - (1 - done) ** 3))


def _threshold(self: Any, share: float) -> float:
    """Weights below it, relative to their layer's size, are zero."""
    import torch

    if share <= 0:
        return 0.0
    sizes = [(w.detach().abs() / _size(w)).flatten() for w in self.weights]
    every = torch.cat(sizes)
    return float(torch.kthvalue(every, max(1, round(share * len(every))))[0])


def _pruned(self: Any, name: str, threshold: float) -> Tensor:
    """A layer's weight with its small values zeroed, not yet rounded."""
    i = self.index[name]
    weight = self.weights[i]
    keep = (weight.detach().abs() / _size(weight) > threshold) & getattr(self, f"alive{i}")
    return weight * keep


def _rounded(self: Any, name: str, threshold: float) -> tuple[Tensor, Tensor]:
    """A layer's weight as it is computed with, and its fraction bits."""
    import torch

    weight, bits = self.pruned(name, threshold), self.bits[name]
    fraction = weight_fraction(weight, bits, self.per_channel)
    high = max(1, (1 << (bits - 1)) - 1)
    scale = torch.exp2(fraction).to(weight.dtype).view(-1, *(1,) * (weight.dim() - 1))
    return _function().apply(weight, scale, -high, high, 0.5), fraction


def _bias(self: Any, name: str, fraction: Tensor, of_input: int) -> Tensor:
    """A layer's bias on the grid of its products."""
    import torch

    bias = self.biases[self.index[name]]
    scale = torch.exp2(fraction + of_input).to(bias.dtype)
    wide = 1 << 30
    return _function().apply(bias, scale, -wide, wide, 0.5)


def _tensors(self: Any, given: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Every tensor by name; without a format (while calibrating) it stays as computed."""
    if self.training:
        self.step += 1
    threshold = self.threshold(self.share())
    found: dict[str, Tensor] = {}
    for (name, _, _), x in zip(self.net.inputs, given, strict=True):
        found[name] = self._formatted(name, x)
    for layer in self.net.layers:
        inputs = [found[name] for name in layer.inputs]
        found[layer.name] = self._formatted(layer.name, self._computed(layer, inputs, threshold))
    return found


def _formatted(self: Any, name: str, x: Tensor) -> Tensor:
    form = self.formats.get(name)
    return x if form is None else round_to(x, form)


def _computed(self: Any, layer: FloatLayer, inputs: list[Tensor], threshold: float) -> Tensor:
    from torch.nn import functional

    if layer.weight is None:
        return _plain(layer, inputs)
    weight, fraction = self.rounded(layer.name, threshold)
    of_input = self.formats.get(self.source(layer.inputs[0]))
    bias = self.biases[self.index[layer.name]]
    if of_input is not None:
        bias = self.bias(layer.name, fraction, of_input.fraction)
    if layer.op == "dense":
        return functional.linear(inputs[0], weight, bias)
    return _conv(layer, inputs[0], weight, bias)


def _source(self: Any, tensor: str) -> str:
    """The tensor whose format another one has: moving values changes none."""
    makers = {one.name: one for one in self.net.layers}
    while tensor in makers and makers[tensor].op in ("max_pool", "flatten"):
        tensor = makers[tensor].inputs[0]
    return tensor


def _forward(self: Any, *given: Tensor) -> tuple[Tensor, ...]:
    found = self.tensors(given)
    return tuple(
        found[tensor].reshape(given[0].shape[0], *shape) for _, tensor, shape, _ in self.net.outputs
    )


def _size(weight: Tensor) -> Tensor:
    return weight.detach().square().mean().sqrt().clamp_min(1e-12)


def _padded(layer: FloatLayer, x: Tensor, fill: float) -> Tensor:
    from torch.nn import functional

    pads = [n for pair in reversed(layer.attributes.get("padding", [])) for n in pair]
    return functional.pad(x, pads, value=fill) if any(pads) else x


def _conv(layer: FloatLayer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from torch.nn import functional

    convolve = functional.conv1d if weight.dim() == 3 else functional.conv2d
    stride, groups = layer.attributes["stride"], layer.attributes["groups"]
    return convolve(_padded(layer, x, 0.0), weight, bias, stride=stride, groups=groups)


def _plain(layer: FloatLayer, inputs: list[Tensor]) -> Tensor:
    import torch
    from torch.nn import functional

    x = inputs[0]
    if layer.op == "relu":
        return functional.relu(x)
    if layer.op == "add":
        return x + inputs[1]
    if layer.op == "flatten":
        return x.flatten(1)
    kernel, stride = layer.attributes["kernel"], layer.attributes["stride"]
    if layer.op == "max_pool":
        pool = functional.max_pool1d if len(kernel) == 1 else functional.max_pool2d
        return pool(_padded(layer, x, -torch.inf), kernel, stride)
    mean: Any = functional.avg_pool1d if len(kernel) == 1 else functional.avg_pool2d
    count = 1
    for size in kernel:
        count *= size
    number, fraction = mean_multiplier(kernel)
    return mean(x, kernel, stride) * (count * number * 2.0**-fraction)
