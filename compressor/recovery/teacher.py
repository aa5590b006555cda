"""The original module's outputs on the training data, each computed once and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.recovery.features import tapped
from compressor.sources.torch_io import batch_size, call, channels_last, tensors
from exporters.base import Samples
from runtimes.types import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

LIMIT_BYTES = 2 << 30  # of kept outputs; above it the teacher runs beside the student
DONE = "teacher.npy"


@dataclass(frozen=True)
class Teacher:
    """Gives the original's outputs for chosen samples: as kept, or by running it.

    Outputs of ragged data cannot be stacked, so they are computed every time. `whole`: the module
    takes batches of one size alone.
    """

    module: nn.Module
    bfloat16: bool
    kept: Kept | None = None
    whole: bool = False

    def outputs(self, indices: Sequence[int], batch: Sequence[Tensor]) -> list[Tensor]:
        """The original's outputs on `batch`, which holds the samples `indices`."""
        if self.kept is None:
            return _run(self.module, batch, self.bfloat16)
        rows = [i for i, index in enumerate(indices) if not self.kept.done[index]]
        if rows:
            every = self.whole or len(rows) == len(indices)
            found = _run(self.module, batch if every else [x[rows] for x in batch], self.bfloat16)
            chosen = [o[rows] for o in found] if every else found
            self.kept.put([indices[i] for i in rows], chosen)
        return self.kept.get(indices)

    def inside(
        self, batch: Sequence[Tensor], names: Sequence[str]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The outputs on `batch`, and those of the modules `names`; nothing of it is kept."""
        with tapped(self.module, names) as found:
            return _run(self.module, batch, self.bfloat16), found

    def save(self) -> None:
        """Write down which outputs are kept, so that a restart finds them."""
        if self.kept is not None:
            self.kept.save()


class Kept:
    """One array an output in memory-mapped files, filled as samples are asked for."""

    def __init__(self, folder: Path, samples: int, first: Sequence[Tensor]) -> None:
        self.folder = folder
        files = [folder / f"teacher{i}.npy" for i in range(len(first))]
        again = (folder / DONE).is_file()
        self.done = np.load(folder / DONE) if again else np.zeros(samples, bool)
        self.arrays = [
            np.lib.format.open_memmap(file, mode="r+")
            if again
            else np.lib.format.open_memmap(
                file, mode="w+", dtype=o.numpy().dtype, shape=(samples, *o.shape[1:])
            )
            for file, o in zip(files, first, strict=True)
        ]

    def get(self, indices: Sequence[int]) -> list[Tensor]:
        """Outputs of samples that are all kept."""
        import torch

        return [torch.from_numpy(array[list(indices)]) for array in self.arrays]

    def put(self, indices: Sequence[int], outputs: Sequence[Tensor]) -> None:
        """Keep the outputs of some samples."""
        for array, out in zip(self.arrays, outputs, strict=True):
            array[list(indices)] = out.numpy()
        self.done[list(indices)] = True

    def save(self) -> None:
        """Flush the arrays, then say what is in them."""
        for array in self.arrays:
            array.flush()
        temporary = self.folder / (DONE + ".tmp")
        with temporary.open("wb") as file:
            np.save(file, self.done)
        os.replace(temporary, self.folder / DONE)  # noqa: PTH105 - atomic


def _run(module: nn.Module, batch: Sequence[Tensor], bfloat16: bool) -> list[Tensor]:
    import torch

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        outputs = call(module, [channels_last(x) for x in batch])
    return [o.float() if o.is_floating_point() else o for o in outputs]


def make_teacher(
    module: nn.Module, inputs: Sequence[TensorSpec], data: Samples, bfloat16: bool, folder: Path
) -> Teacher:
    """A teacher that keeps outputs in `folder` where all would fit; those there are used again."""
    module.eval().to(memory_format=_channels_last())
    first = _run(module, tensors(inputs, data.feeds([0])), bfloat16)
    each = sum(o[0].numel() * o.element_size() for o in first if o.dim())
    stackable = not data.ragged and all(o.dim() and o.shape[0] == 1 for o in first)
    if not stackable or each * len(data) > LIMIT_BYTES:
        return Teacher(module, bfloat16)
    whole = batch_size(inputs, data, len(data)) < len(data)
    return Teacher(module, bfloat16, Kept(folder, len(data), first), whole)


def _channels_last() -> Any:
    import torch

    return torch.channels_last
