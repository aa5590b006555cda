"""`prune_pattern` on a torch module: its layers as matrices, its activations through hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.modules import load_module, parameter_names, reference_of, write_module
from compressor.pruning import effects
from compressor.pruning.pattern_pass import Slot, run_pattern, with_pattern
from compressor.pruning.patterns import parse_pattern
from compressor.pruning.select import kept_layers
from compressor.quantization.blas import one_blas_thread
from compressor.quantization.reconstruction_rows import (
    Window,
    conv_rows,
    flat_rows,
    transposed_conv_rows,
    window,
)
from compressor.quantization.reconstruction_taps import Tap
from compressor.sources.torch_io import call, first_input, tensors, threads
from exporters.base import Env
from runtimes.base import Feeds
from runtimes.errors import Refusal
from runtimes.types import Artifact, TensorSpec

if TYPE_CHECKING:
    from torch import nn


class Module:
    """A torch module as a `Subject`; weights are changed in place."""

    def __init__(self, module: nn.Module, inputs: Sequence[TensorSpec]) -> None:
        self.module, self.inputs = module.eval(), inputs
        self.layers: dict[str, Any] = dict(module.named_modules())

    def get(self, slot: Slot) -> Any:
        """As `Subject` says."""
        layer, weight = self._of(slot)
        found = _matrix(layer, weight.detach().numpy()).astype(np.float64)
        if slot.bias:
            bias = layer.bias.detach().numpy().reshape(*found.shape[:2], 1)
            found = np.concatenate([found, bias.astype(np.float64)], axis=2)
        return found

    def set(self, slot: Slot, values: Any) -> None:
        """As `Subject` says."""
        import torch

        layer, weight = self._of(slot)
        width = values.shape[2] - slot.bias
        made = _unmatrix(layer, values[:, :, :width], tuple(weight.shape))
        with torch.no_grad():
            weight.copy_(torch.from_numpy(made))
            if slot.bias:
                layer.bias.copy_(torch.from_numpy(values[:, :, -1].reshape(-1)))

    def _of(self, slot: Slot) -> tuple[Any, Any]:
        layer = self.layers[slot.layer]
        return layer, getattr(layer, slot.weight.rpartition(".")[2])

    def tapped(self, names: Sequence[str], shapes: bool) -> Callable[[Feeds], Sequence[Any]]:
        """As `Subject` says; a tensor is called as the layer that reads it, one array a call."""
        import torch

        def run(feeds: Feeds) -> list[Any]:
            seen: dict[str, list[Any]] = {name: [] for name in names}
            with ExitStack() as stack, torch.no_grad():
                for name in names:
                    hook = partial(_take, seen[name])
                    handle = self.layers[name].register_forward_pre_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
                call(self.module, tensors(self.inputs, feeds))
            if shapes:
                return [(sum(array.size for array in calls),) for calls in seen.values()]
            return list(seen.values())

        return run

    def outputs(self, feeds: Sequence[Feeds]) -> list[list[Any]]:
        """As `Subject` says."""
        import torch

        with torch.no_grad():
            made = [call(self.module, tensors(self.inputs, batch)) for batch in feeds]
        return [[output.numpy() for output in outputs] for outputs in made]


def _take(seen: list[Any], _layer: Any, args: Any, kwargs: Any) -> None:
    seen.append(first_input(args, kwargs).detach().numpy())


def _matrix(layer: Any, weight: Any) -> Any:
    """[groups, outputs, columns] of a weight."""
    if getattr(layer, "transposed", False):
        weight = np.moveaxis(weight, 1, 0)
    groups = getattr(layer, "groups", 1)
    return weight.reshape(groups, len(weight) // groups, -1)


def _unmatrix(layer: Any, values: Any, shape: tuple[int, ...]) -> Any:
    if getattr(layer, "transposed", False):
        moved = values.reshape(shape[1], shape[0], *shape[2:])
        return np.ascontiguousarray(np.moveaxis(moved, 0, 1), np.float32)
    return np.ascontiguousarray(values.reshape(shape), np.float32)


def _slots(name: str, layer: Any) -> list[Slot]:
    """The weights of a layer that can be read as matrices."""
    from torch import nn

    if isinstance(layer, nn.RNNBase):  # what they read within a call is not seen: by size
        wanted = [n for n, p in layer.named_parameters() if p.dim() == 2]
        return [Slot(name, f"{name}.{n}".lstrip(".")) for n in wanted]
    if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
        return []
    shape, bias = tuple(layer.weight.shape), layer.bias is not None
    kernel = int(np.prod(shape[2:])) if len(shape) > 2 else 1
    columns = layer.weight.numel() // _outputs(layer) + bias
    groups = getattr(layer, "groups", 1)
    plain = getattr(layer, "padding_mode", "zeros") == "zeros"
    rows = partial(_rows, layer)
    tap = Tap(f"{name}.weight".lstrip("."), (name,), rows, columns, groups, grouped=True)
    return [Slot(name, tap.weight, kernel, bias, tap if plain else None)]


def _outputs(layer: Any) -> int:
    turned = getattr(layer, "transposed", False)
    return int(layer.weight.shape[1] * layer.groups if turned else layer.weight.shape[0])


def _rows(layer: Any, values: list[Any], limit: int, rng: Any) -> list[Any]:
    """Rows of the layer's input in all its calls, with a one behind each where it has a bias."""
    (calls,) = values
    found = [_call_rows(layer, array, -(-limit // len(calls)), rng) for array in calls]
    blocks = [np.concatenate(parts) for parts in zip(*filter(None, found), strict=True)]
    if layer.bias is None:
        return blocks
    return [np.concatenate([b, np.ones((len(b), 1), b.dtype)], axis=1) for b in blocks]


def _call_rows(layer: Any, array: Any, limit: int, rng: Any) -> list[Any]:
    kernel = tuple(layer.weight.shape[2:])
    if not kernel:
        return flat_rows(array, limit, rng)
    if array.ndim != len(kernel) + 2:
        return []
    take = transposed_conv_rows if layer.transposed else conv_rows
    return take(array, _window(layer, kernel, array.shape[2:]), limit, rng)


def _window(layer: Any, kernel: tuple[int, ...], size: Sequence[int]) -> Window:
    same = "upper" if layer.padding == "same" else ""
    pads = () if isinstance(layer.padding, str) else layer.padding
    return window(kernel, size, layer.stride, layer.dilation, (*pads, *pads), layer.groups, same)


def _sorted_out(
    module: nn.Module, keep: Sequence[str], quads: bool, least: int
) -> tuple[list[Slot], list[Refusal]]:
    """The weights that may have the pattern, and why others may not."""
    kept, names = kept_layers(module, keep), parameter_names(module)
    slots, reasons = [], []
    known: set[int] = set()
    for name, layer in module.named_modules():
        parameters = dict(layer.named_parameters(recurse=False))
        for slot in _slots(name, layer):
            weight = parameters.get(slot.weight.rpartition(".")[2])
            why = f"kept: {name}" if name in kept else _unfit(layer, weight, names, quads)
            if weight is not None:
                known.add(id(weight))
            if why:
                reasons.append(Refusal(name, why))
            else:
                slots.append(slot)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1 and parameter.numel() >= least and id(parameter) not in known:
            reasons.append(Refusal(name, "not the weight of a linear or convolution layer"))
    return slots, reasons


def _unfit(layer: Any, weight: Any, names: Mapping[int, list[str]], quads: bool) -> str:
    """Why a weight is left alone; "" where it may have zeros."""
    import torch
    from torch import nn

    if weight is None:
        return "its weight is computed from others (a parametrization)"
    if len(names[id(weight)]) > 1:
        return "its weight is tied to another layer's"
    if not weight.requires_grad:
        return "its weight is frozen"
    if weight.dtype != torch.float32:
        return f"its weight is {weight.dtype}"
    groups, turned = getattr(layer, "groups", 1), getattr(layer, "transposed", False)
    if turned and groups > 1:
        return "a grouped transposed convolution is left alone"
    if quads and (groups > 1 or turned or isinstance(layer, nn.RNNBase)):
        kind = "grouped convolution" if groups > 1 else type(layer).__name__
        return f"a {kind} has no sparse kernel"
    return ""


@one_blas_thread()
def run_module(source: Artifact, options: Any, env: Env) -> Artifact:
    """Give the weights of the module in `source` their zeros.

    Raises as `run_pattern`; `UsageError` where a `keep` matches nothing.
    """
    with threads(env.context.threads):
        module = load_module(source, env.factory)
        quads = parse_pattern(options.pattern).quads
        slots, reasons = _sorted_out(module, env.context.keep.channels, quads, options.least)
        subject, data = Module(module, source.inputs), effects.data_of(env)
        facts = run_pattern(subject, slots, reasons, source.inputs, data, options, env)
        module, restored = effects.restored(
            source.inputs, options.samples, data, load_module(source, env.factory), module
        )
    told = with_pattern(source, facts)
    told["notes"] = [*told["notes"], *restored]
    factory = reference_of(source)
    return write_module(
        env.work, module, source.inputs, source.outputs, factory=factory, facts=told
    )
