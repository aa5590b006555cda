"""The trained values of a graph as parameters of one size, and back as what the file stores.

AdamW moves every parameter by about the learning rate, so each one is held in units of its own:
weights in the root mean square of their channel, scales as exponents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.quantization.onnx_index import Index
from compressor.quantization.onnx_weights import int4_tensor
from compressor.training.fake_quant import fake_quantize

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.training.graph import Parts
    from compressor.training.stored import Weight


def make_values(graph: Index, parts: Parts, floats: Mapping[str, Any], narrow: bool) -> Any:
    """The `Values` module of a graph; arguments as for `graph.trainable`."""
    return _values_class()(graph, parts, floats, narrow)


def _array(graph: Index, name: str) -> Any:
    import onnx

    return onnx.numpy_helper.to_array(graph.weights[name])


def _ends(proto: Any, integers: Any, narrow: bool) -> tuple[int, int]:
    """Smallest and largest integer of a weight; symmetric ones leave -128 out."""
    import onnx

    kinds = {
        onnx.TensorProto.INT4: (-8, 7),
        onnx.TensorProto.UINT4: (0, 15),
        onnx.TensorProto.UINT8: (0, 255),
    }
    if proto.data_type in kinds:
        return kinds[proto.data_type]
    limit = 63 if narrow and np.abs(integers.astype(int)).max() <= 63 else 127
    return -limit, limit


def _floats(array: Any) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, np.float32).copy())


def _stored_class() -> Any:
    import torch
    from torch import nn

    class Stored(nn.Module):  # type: ignore[misc]
        """One integer weight: `units` are trained, and the scale's `exponent`."""

        def __init__(self, graph: Index, weight: Weight, floats: Any, narrow: bool) -> None:
            super().__init__()
            integers = _array(graph, weight.name).astype(np.int8 if weight.bits == 4 else None)
            scale = weight.full_scale(_array(graph, weight.scale), integers.shape)
            zero = np.zeros(1) if not weight.zero else _array(graph, weight.zero).astype(np.int32)
            zero = weight.full_scale(zero, integers.shape) if zero.size > 1 else zero.reshape(())
            rounded = (integers.astype(np.float32) - zero) * scale
            self.low, self.high = _ends(graph.weights[weight.name], integers, narrow)
            start = _start(floats, rounded, scale)
            over = tuple(i for i in range(start.ndim) if scale.ndim == 0 or scale.shape[i] == 1)
            unit = np.sqrt((start.astype(np.float64) ** 2).mean(over, keepdims=True))
            self.unit = _floats(np.where(unit > 0, unit, 1.0))
            self.scale, self.dims = _floats(scale), integers.shape
            self.zero = torch.from_numpy(np.broadcast_to(zero, scale.shape).astype(np.int32).copy())
            self.units = nn.Parameter(_floats(start) / self.unit)
            blocks = weight.block > 0
            self.exponent = None if blocks else nn.Parameter(torch.zeros_like(self.scale))

        def current(self) -> Tensor:
            return fake_quantize(
                self.units * self.unit, self.scale, self.exponent, self.zero, self.low, self.high
            )

        def stored(self) -> tuple[Any, Any]:
            """Integers, and the scales in their full shape."""
            step = self.scale if self.exponent is None else self.scale * self.exponent.exp()
            units = torch.round(self.units * self.unit / step) + self.zero
            return units.clamp(self.low, self.high).detach().numpy(), step.detach().numpy()

    return Stored


def _values_class() -> Any:
    import torch
    from torch import nn

    stored_class = _stored_class()

    class Values(nn.Module):  # type: ignore[misc]
        def __init__(
            self, graph: Index, parts: Parts, floats: Mapping[str, Any], narrow: bool
        ) -> None:
            super().__init__()
            self.parts, self.places = parts, {n: str(i) for i, n in enumerate(graph.weights)}
            self.stored, self.plain = nn.ModuleDict(), nn.ParameterDict()
            self.exponents = nn.ParameterDict()
            self.units: dict[str, float] = {}
            for name, weight in parts.weights.items():
                made = stored_class(graph, weight, floats.get(name), narrow)
                self.stored[self.places[name]] = made
            for name, bias in parts.biases.items():
                self._hold(name, _array(graph, name) * _array(graph, bias.scale))
            for name in parts.floats:
                self._hold(name, _array(graph, name))
            for name in parts.scales:
                shape = tuple(graph.weights[name].dims)
                self.exponents[self.places[name]] = nn.Parameter(torch.zeros(shape))

        def _hold(self, name: str, array: Any) -> None:
            size = float(np.sqrt((array.astype(np.float64) ** 2).mean()))
            self.units[name] = size or 1.0
            self.plain[self.places[name]] = nn.Parameter(_floats(array) / self.units[name])

        def value(self, name: str) -> Tensor:
            return self.plain[self.places[name]] * self.units[name]

        def exponent(self, name: str) -> Tensor | None:
            """What the scale called `name` is multiplied with, as an exponent; None: nothing."""
            raw = self.exponents.get(self.places[name], None)
            cap = self.parts.caps.get(name)
            if raw is None or cap is None:
                return raw
            return raw - (raw - cap).clamp(min=0).detach()  # its gradient leads back below the cap

        def current(self) -> dict[str, Tensor]:
            """Tensor name → value, of everything that is trained but the activations' scales."""
            made = {
                w.result: self.stored[self.places[n]].current()
                for n, w in self.parts.weights.items()
            }
            made |= {b.result: self.value(n) for n, b in self.parts.biases.items()}
            return made | {name: self.value(name) for name in self.parts.floats}

        def rounded(self, x: Tensor, name: str, scale: Tensor, zero: Tensor | None) -> Tensor:
            """An activation on the grid of the scale called `name`."""
            kind = torch.uint8 if zero is None else zero.dtype
            ends = torch.iinfo(kind)
            at = torch.zeros(1, dtype=torch.int32) if zero is None else zero.to(torch.int32)
            exponent = self.exponent(name)
            return fake_quantize(x, scale, exponent, at, int(ends.min), int(ends.max))

    return Values


def _start(floats: Any, rounded: Any, scale: Any) -> Any:
    """The float weights, unless what was stored was not rounded from them."""
    if floats is None or floats.shape != rounded.shape:
        return rounded
    far = np.abs(floats - rounded) > 4 * scale
    return floats if far.mean() < 0.01 else rounded


def write_back(model: Any, module: Any) -> None:
    """Put what `module` (made by `graph.trainable`) has learned into `model`, in place."""
    import onnx

    parts, values = module.parts, module.values
    tensors = {t.name: t for t in model.graph.initializer}

    def put(name: str, array: Any) -> None:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensors[name].data_type)
        if kind.name in {"int4", "uint4"}:
            packed = int4_tensor(array, name)
            packed.data_type = tensors[name].data_type
        else:
            packed = onnx.numpy_helper.from_array(array.astype(kind), name)
        tensors[name].CopyFrom(packed)

    scales: dict[str, Any] = {}
    for name in parts.scales:
        old = onnx.numpy_helper.to_array(tensors[name])
        exponent = values.exponent(name).detach().numpy()
        put(name, scales.setdefault(name, (old * np.exp(exponent)).astype(np.float32)))
    for name, weight in parts.weights.items():
        integers, full = values.stored[values.places[name]].stored()
        put(name, integers)
        if not weight.block:
            scale = full.reshape(tuple(tensors[weight.scale].dims))
            put(weight.scale, scales.setdefault(weight.scale, scale))
    for name, bias in parts.biases.items():
        unit = [
            scales.get(n, onnx.numpy_helper.to_array(tensors[n]))
            for n in (bias.source, bias.weight)
        ]
        step = (unit[0] * unit[1]).astype(np.float32).reshape(tuple(tensors[bias.scale].dims))
        wanted = values.value(name).detach().numpy().astype(np.float64)
        put(name, np.rint(wanted / step).clip(-(2**31), 2**31 - 1))
        put(bias.scale, step)
    for name in parts.floats:
        put(name, values.value(name).detach().numpy())
