"""Feeds into torch modules and outputs out of them, the same way in every pass.

A module is called with its inputs by position, in the artifact's order; whatever it returns
(a tensor, tuples, lists, dicts of tensors) is flattened into a list, dicts in their own order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from exporters.base import Samples, example_feeds
from runtimes.errors import UsageError
from runtimes.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


OutputKind = Literal["classes", "values", "other"]


def output_kinds(outputs: Sequence[Tensor], labels: Sequence[Any] | None) -> list[OutputKind]:
    """What each output is: class scores [n, classes], float values, or something else.

    Scores cannot be told from values by their shape: an output holds class scores only where the
    data has one integer label in range a sample. Values are the safe reading of both.
    """
    return [_output_kind(out, labels) for out in outputs]


def _output_kind(out: Tensor, labels: Sequence[Any] | None) -> OutputKind:
    if not out.is_floating_point():
        return "other"
    if out.dim() != 2 or out.shape[1] < 2 or labels is None or len(labels) == 0:
        return "values"
    marks = np.asarray(labels) if np.ndim(labels[0]) == 0 else np.zeros(0)
    whole = marks.size > 0 and marks.dtype.kind in "iu"
    scores = whole and marks.min() >= 0 and marks.max() < out.shape[1]
    return "classes" if scores and not _is_distribution(out) else "values"


def _is_distribution(out: Tensor) -> bool:
    sums = out.detach().float().sum(1)
    return bool((out >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())


def tensors(inputs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray]) -> list[Tensor]:
    """`feeds` as torch tensors in the order of `inputs`."""
    import torch

    return [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])) for spec in inputs]


def flatten(value: Any) -> list[Tensor]:
    """All tensors in what a module returned, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for part in value.values() for t in flatten(part)]
    if isinstance(value, (tuple, list)):
        return [t for part in value for t in flatten(part)]
    return []


def call(module: nn.Module, batch: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of `module` on one batch; `UsageError` where it returns no tensor."""
    outputs = flatten(module(*batch))
    if not outputs:
        raise UsageError("the module returns no tensor", where=type(module).__name__)
    return outputs


def first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a layer was called with, which a hook sees: `layer(x)` or `layer(input=x)`."""
    if args:
        return args[0]
    return kwargs["input"] if "input" in kwargs else next(iter(kwargs.values()))


def example_batch(
    inputs: Sequence[TensorSpec], dims: Mapping[str, int], data: Samples | None, seed: int
) -> list[Tensor]:
    """Two samples of `data` where there is some, else seeded example arrays."""
    if data is not None and len(data) > 0:
        count = 1 if data.ragged or _fixed_batch(inputs) else min(2, len(data))
        return tensors(inputs, data.feeds(list(range(count))))
    return tensors(inputs, example_feeds(inputs, dims, seed))


def _fixed_batch(inputs: Sequence[TensorSpec]) -> bool:
    return any(spec.shape and spec.shape[0] == 1 for spec in inputs)


def batch_size(inputs: Sequence[TensorSpec], data: Samples, wanted: int) -> int:
    """`wanted`, or what a fixed batch axis or ragged samples allow."""
    fixed = [int(s.shape[0]) for s in inputs if s.shape and isinstance(s.shape[0], int)]
    return 1 if data.ragged else min([wanted, *fixed])


def batches(
    inputs: Sequence[TensorSpec], data: Samples, samples: int, size: int
) -> Iterator[list[Tensor]]:
    """Up to `samples` samples, evenly taken from all of `data`, in batches of up to `size`."""
    return batches_of(inputs, data, spread(data, samples), size)


def spread(data: Samples, samples: int) -> list[int]:
    """Indices of up to `samples` samples, evenly taken from all of `data`."""
    count = min(samples, len(data))
    return [i * len(data) // count for i in range(count)]


def batches_of(
    inputs: Sequence[TensorSpec], data: Samples, indices: Sequence[int], size: int
) -> Iterator[list[Tensor]]:
    """The samples `indices` in batches of up to `size`."""
    for _, feeds in data.batches(batch_size(inputs, data, size), indices):
        yield tensors(inputs, feeds)


def channels_last(x: Tensor) -> Tensor:
    """Images in the memory format in which convolutions are faster on CPUs; others as they are."""
    import torch

    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Exactly `count` torch threads inside, as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside, torch's transformer layers call their parts and no fused kernel."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
