"""What a step's test needs: data in memory and an `Env`, without a run around them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporters.base import Context, Samples, Trial
from runtimes.types import Artifact


class ArraySamples:
    """Arrays by input name; the first axis is the samples'."""

    ragged = False

    def __init__(self, arrays: Mapping[str, np.ndarray], labels: Sequence[Any] | None = None):
        self.arrays = dict(arrays)
        self._labels = labels
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            digest.update(name.encode() + np.ascontiguousarray(self.arrays[name]).tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def labels(self) -> Sequence[Any] | None:
        return self._labels

    def feeds(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        return {name: array[list(indices)] for name, array in self.arrays.items()}

    def batches(
        self, size: int, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        order = list(range(len(self)) if indices is None else indices)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            yield chosen, self.feeds(chosen)


@dataclass
class StepEnv:
    """`exporters.base.Env`; `told` keeps what the step reported as progress."""

    work: Path
    scratch: Path
    checkpoint: Path
    context: Context
    data: Mapping[str, Samples]
    reference: Artifact
    factory: Callable[[], Any] | None
    log: logging.Logger
    told: list[tuple[float, str]] = field(default_factory=list)
    on_progress: Callable[[float, str], None] | None = None
    on_trial: Callable[[Artifact], Trial] | None = None

    def progress(self, done: float, message: str) -> None:
        self.told.append((done, message))
        if self.on_progress is not None:
            self.on_progress(done, message)

    def load_module(self, artifact: Artifact) -> Any:
        from compressor.modules import load_module

        return load_module(artifact, self.factory)

    def function(self, reference: str) -> Any:
        from compressor.modules import import_reference

        return import_reference(reference)

    def trial(self, artifact: Artifact) -> Trial:
        assert self.on_trial is not None, "this test's step runs no trials"
        return self.on_trial(artifact)

    def built(self, artifact: Artifact, target: str | None = None) -> tuple[Artifact, str]:
        raise AssertionError("this test's step times no builds")


def make_env(
    tmp_path: Path,
    *,
    reference: Artifact,
    data: Mapping[str, Samples] | None = None,
    factory: Callable[[], Any] | None = None,
    context: Context | None = None,
    name: str = "step",
    on_progress: Callable[[float, str], None] | None = None,
    on_trial: Callable[[Artifact], Trial] | None = None,
) -> StepEnv:
    """An `Env` whose folders lie under `tmp_path/name`; `work` and `scratch` are empty and there.

    The same `name` again finds the same checkpoint, as a killed and restarted step would.
    """
    root = tmp_path / name
    tries = len(list(root.glob("work*")))
    folders = [root / f"work{tries}", root / f"scratch{tries}", root / "checkpoint"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return StepEnv(
        *folders,
        context=context or Context(),
        data=dict(data or {}),
        reference=reference,
        factory=factory,
        log=logging.getLogger("tests"),
        on_progress=on_progress,
        on_trial=on_trial,
    )
