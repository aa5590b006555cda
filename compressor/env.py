"""What a running step is given: folders, data, the original model, a way to say how far it is."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from exporters.base import Context, Samples, Trial
from runtimes.types import Artifact


class Progress(Protocol):
    """Where a run tells a person how far it is; never the place of results."""

    def begin(self, title: str) -> None:
        """Work called `title` starts."""

    def update(self, done: float, message: str) -> None:
        """The current work is `done` (0–1)."""

    def end(self, summary: str) -> None:
        """The current work is over."""

    def say(self, message: str) -> None:
        """A sentence worth keeping on the screen."""


class Silent:
    """Progress nobody sees: the Python API's default."""

    def begin(self, title: str) -> None: ...  # noqa: D102

    def update(self, done: float, message: str) -> None: ...  # noqa: D102

    def end(self, summary: str) -> None: ...  # noqa: D102

    def say(self, message: str) -> None: ...  # noqa: D102


@dataclass
class StepEnv:
    """`exporters.base.Env` as a run fills it."""

    work: Path
    scratch: Path
    checkpoint: Path
    context: Context
    data: Mapping[str, Samples]
    reference: Artifact
    factory: Callable[[], Any] | None
    log: logging.Logger
    on_progress: Callable[[float, str], None]
    on_trial: Callable[[Artifact], Trial]
    on_built: Callable[[Artifact, str | None], tuple[Artifact, str]]
    base_dir: Path | None = None

    def progress(self, done: float, message: str) -> None:
        """Tell the user: `done` in 0–1."""
        self.on_progress(done, message)

    def load_module(self, artifact: Artifact) -> Any:
        """The torch module of a `module` artifact, in eval mode."""
        from compressor.modules import load_module

        return load_module(artifact, self.factory)

    def function(self, reference: str) -> Any:
        """What `package.module:function` names, looked for in `base_dir` first."""
        from compressor.modules import import_reference

        return import_reference(reference, self.base_dir)

    def trial(self, artifact: Artifact) -> Trial:
        """Run the rest of this target's list on selection data."""
        return self.on_trial(artifact)

    def built(self, artifact: Artifact, target: str | None = None) -> tuple[Artifact, str]:
        """What a target makes of an attempt, without training, and its device."""
        return self.on_built(artifact, target)


class Part:
    """Some samples of a data set, as a data set of its own."""

    def __init__(self, whole: Samples, indices: Sequence[int], name: str) -> None:
        self.whole, self.indices, self.description = whole, list(indices), name
        chosen = np.asarray(self.indices, np.int64).tobytes()
        self.fingerprint = hashlib.sha256(whole.fingerprint.encode() + chosen).hexdigest()
        self.ragged = whole.ragged

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Sequence[Any] | None:
        """Labels of the chosen samples, or None."""
        labels = self.whole.labels
        return None if labels is None else [labels[i] for i in self.indices]

    def feeds(self, indices: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
        """The named samples as one batch, by input name."""
        return self.whole.feeds([self.indices[i] for i in indices])

    def batches(
        self, size: int, indices: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray[Any, Any]]]]:
        """Batches of (indices, feeds), in order; the last one may be smaller."""
        order = list(range(len(self)) if indices is None else indices)
        size = 1 if self.ragged else size
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            yield chosen, self.feeds(chosen)


def split(samples: Samples, share: float, seed: int, name: str) -> tuple[Part, Part]:
    """Two disjoint parts of a data set, the second holding `share` of it, drawn with `seed`."""
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    cut = max(1, round(len(order) * (1 - share)))
    return (
        Part(samples, sorted(order[:cut]), name),
        Part(samples, sorted(order[cut:]), f"{name}, held out"),
    )
