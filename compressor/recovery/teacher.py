"""The original module's outputs on the training data, computed once and kept on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compressor.sources.torch_io import batch_size, call, channels_last, tensors
from exporters.base import Samples
from runtimes.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

LIMIT_BYTES = 2 << 30  # of cached outputs; above it the teacher runs beside the student
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Teacher:
    """Gives the original's outputs for chosen samples, from memory-mapped files or by running it.

    Outputs of ragged data cannot be stacked, so they are always computed.
    """

    module: nn.Module
    bfloat16: bool
    cached: tuple[np.ndarray, ...] | None

    def outputs(self, indices: Sequence[int], batch: Sequence[Tensor]) -> list[Tensor]:
        """The original's outputs on `batch`, which holds the samples `indices`."""
        import torch

        if self.cached is not None:
            return [torch.from_numpy(array[list(indices)]) for array in self.cached]
        return _run(self.module, batch, self.bfloat16)


def _run(module: nn.Module, batch: Sequence[Tensor], bfloat16: bool) -> list[Tensor]:
    import torch

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        outputs = call(module, [channels_last(x) for x in batch])
    return [o.float() if o.is_floating_point() else o for o in outputs]


def make_teacher(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    data: Samples,
    bfloat16: bool,
    folder: Path,
    progress: Progress,
) -> Teacher:
    """A teacher that caches in `folder` where its outputs fit; a finished cache is used again."""
    import torch

    module.eval().to(memory_format=torch.channels_last)
    first = _run(module, tensors(inputs, data.feeds([0])), bfloat16)
    each = sum(o[0].numel() * o.element_size() for o in first if o.dim())
    stackable = not data.ragged and all(o.dim() and o.shape[0] == 1 for o in first)
    if not stackable or each * len(data) > LIMIT_BYTES:
        return Teacher(module, bfloat16, None)
    files = [folder / f"teacher{i}.npy" for i in range(len(first))]
    done = folder / "teacher.json"
    if not done.is_file():
        _fill(module, inputs, data, bfloat16, files, first, progress)
        temporary = done.with_suffix(".tmp")
        temporary.write_text(json.dumps({"samples": len(data)}) + "\n", encoding="utf-8")
        os.replace(temporary, done)  # noqa: PTH105 - atomic, after the files it vouches for
    cached = tuple(np.load(file, mmap_mode="r") for file in files)
    return Teacher(module, bfloat16, cached)


def _fill(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    data: Samples,
    bfloat16: bool,
    files: Sequence[Path],
    first: Sequence[Tensor],
    progress: Progress,
) -> None:
    arrays = [
        np.lib.format.open_memmap(
            file, mode="w+", dtype=o.numpy().dtype, shape=(len(data), *o.shape[1:])
        )
        for file, o in zip(files, first, strict=True)
    ]
    for indices, feeds in data.batches(batch_size(inputs, data, 128)):
        found = _run(module, tensors(inputs, feeds), bfloat16)
        for array, out in zip(arrays, found, strict=True):
            array[indices] = out.numpy()
        progress((indices[-1] + 1) / len(data))
    for array in arrays:
        array.flush()
