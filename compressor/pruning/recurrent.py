"""RNN, LSTM and GRU layers in the dependency graph: one opaque node each.

torch-pruning reads the graph off autograd, where a GRU is hundreds of small operations, and its
own LSTM pruner slices the hidden weights wrongly (1.6.1). Here a recurrent layer may lose inputs;
its hidden units stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def pruners() -> dict[Any, Any]:
    """torch-pruning's `customized_pruners` for the recurrent layers."""
    import torch
    import torch_pruning
    from torch import nn

    class InputPruner(torch_pruning.pruner.function.BasePruningFunc):  # type: ignore[misc]
        TARGET_MODULES = nn.RNNBase

        def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            keep = sorted(set(range(layer.input_size)) - set(idxs))
            for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
                if hasattr(layer, name):
                    weight = getattr(layer, name).detach()[:, keep].clone()
                    setattr(layer, name, torch.nn.Parameter(weight))
            layer.input_size = len(keep)
            return layer

        def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:  # noqa: ARG002
            raise ValueError(f"hidden units of a {type(layer).__name__} are left alone")

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.input_size)

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.hidden_size) * (2 if layer.bidirectional else 1)

    return dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), InputPruner())


@contextmanager
def opaque(module: nn.Module) -> Iterator[None]:
    """Inside, autograd sees every recurrent layer as one operation (its gradients are zeros)."""
    from torch import nn

    layers = [layer for layer in module.modules() if isinstance(layer, nn.RNNBase)]
    for layer in layers:
        layer.forward = _one_node(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _one_node(forward: Any) -> Any:
    import torch

    class Opaque(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any, state: Any) -> Any:  # noqa: ARG004
            with torch.no_grad():
                out, hidden = forward(x, state)
            return (out, *hidden) if isinstance(hidden, tuple) else (out, hidden)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError("for reading the graph only")

    def traced(x: Any, hx: Any = None) -> Any:
        out, *hidden = Opaque.apply(x, hx)
        return out, tuple(hidden) if len(hidden) > 1 else hidden[0]

    return traced
