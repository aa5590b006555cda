"""RNN, LSTM and GRU layers in the dependency graph: one opaque node each.

torch-pruning reads the graph off autograd, where a GRU is hundreds of small operations, and its
own LSTM pruner slices the hidden weights wrongly (1.6.1). Here a recurrent layer may lose inputs
and hidden units: a unit's rows of every gate and its columns of the hidden weights, in all layers
stacked in one module and in both directions, which share one `hidden_size`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def pruners() -> dict[Any, Any]:
    """torch-pruning's `customized_pruners` for the recurrent layers."""
    import torch_pruning
    from torch import nn

    class Pruner(torch_pruning.pruner.function.BasePruningFunc):  # type: ignore[misc]
        TARGET_MODULES = nn.RNNBase

        def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:  # noqa: ARG002
            return layer  # only the graph is read: `removal` removes

        def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:  # noqa: ARG002
            return layer

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.input_size)

        def get_out_channels(self, layer: Any) -> int:
            return out_channels(layer)

    return dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), Pruner())


def out_channels(layer: nn.RNNBase) -> int:
    """Channels of the output: hidden units of both directions."""
    return int(layer.proj_size or layer.hidden_size) * directions(layer)


def directions(layer: nn.RNNBase) -> int:
    """2 where it also runs backwards."""
    return 2 if layer.bidirectional else 1


def hidden_axes(layer: nn.RNNBase, name: str, units: Sequence[int]) -> list[tuple[int, list[int]]]:
    """(axis, indices) of hidden `units` in the parameter `name`: all gates' rows, and columns."""
    size = layer.hidden_size
    gates = getattr(layer, name).shape[0] // size
    found = [(0, [gate * size + unit for gate in range(gates) for unit in units])]
    if name.startswith("weight_hh"):
        found.append((1, list(units)))
    elif name.startswith("weight_ih") and not name.startswith("weight_ih_l0"):
        blocks = range(directions(layer))
        found.append((1, [block * size + unit for block in blocks for unit in units]))
    return found


@contextmanager
def opaque(module: nn.Module) -> Iterator[None]:
    """Inside, autograd sees every recurrent layer as one operation (its gradients are zeros)."""
    from torch import nn

    layers = [layer for layer in module.modules() if isinstance(layer, nn.RNNBase)]
    for layer in layers:
        layer.forward = _one_node(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _one_node(layer: Any) -> Any:
    import torch

    forward, weight = layer.forward, layer.weight_hh_l0

    class Opaque(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any, state: Any, anchor: Any) -> Any:  # noqa: ARG004
            with torch.no_grad():
                out, hidden = forward(x, state)
            return (out, *hidden) if isinstance(hidden, tuple) else (out, hidden)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError("for reading the graph only")

    def traced(input: Any, hx: Any = None) -> Any:  # noqa: A002 - as torch names it
        out, *hidden = Opaque.apply(input, hx, weight)  # the weight: a node even where it has none
        return out, tuple(hidden) if len(hidden) > 1 else hidden[0]

    return traced
