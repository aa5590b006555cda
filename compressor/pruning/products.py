"""Products of two activations, read for the dependency graph.

torch-pruning sees `a @ b` as one operation in which every channel meets every other. In queries
times keys the channels of both are summed over: they go together, and none comes out. The graph
is therefore read a second time with such products cut, each replaced by a sum that says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def cut() -> Iterator[list[Tensor]]:
    """Inside, products that sum over channels have no gradient; the list holds what tells of them.

    An axis with stride 1 in the right factor holds its channels: layers write them next to each
    other. Where that is wrong, the trial of the groups shows it.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    told: list[Tensor] = []
    names = (
        torch.matmul,
        torch.bmm,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.Tensor.bmm,
    )

    class Cut(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            made = function(*args, **(kwargs or {}))
            if function not in names or kwargs or not all(_activation(x) for x in args):
                return made
            left, right = args
            if right.stride(-2) != 1 or right.shape[-2] == 1:
                return made
            told.append(_mean(left) + _mean(right.transpose(-1, -2)))
            return made.detach()

    mode: Any = Cut()
    with mode:
        yield told


def _activation(x: Any) -> bool:
    from torch import nn

    return x.grad_fn is not None and x.dim() > 2 and not isinstance(x, nn.Parameter)


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1, -2).mean(1)
