"""Channels and ranks under one budget: how much each of them saves is measured.

Which loses less depends on the model: some have channels that hardly matter, in others every layer
is of low rank. So a few splits of the saving are made, channels first, and what moves the outputs
least on data stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from compressor.pruning import effects
from compressor.pruning.costs import Measure
from compressor.pruning.plan import Kind, Scope
from compressor.sources.torch_io import batches_of, spread
from exporters.base import Env, Samples
from runtimes.errors import CompressError, Unsupported, UsageError
from runtimes.types import Artifact

if TYPE_CHECKING:
    from torch import nn

SHARES = (0.0, 0.25, 0.5)  # of the logarithm of what stays, that channels account for


@dataclass(frozen=True)
class _Channels:
    """What `prune_channels` reads of its options."""

    keep: Mapping[str, float]
    multiple: int
    samples: int
    on: str = ""
    saliency: Kind = "auto"
    scope: Scope = "auto"
    floor: float = 0.15


class _Options(Protocol):
    @property
    def multiple(self) -> int: ...

    @property
    def samples(self) -> int: ...


@dataclass(frozen=True)
class Made:
    """A module that meets the budget, and what is stored with it."""

    module: nn.Module
    facts: dict[str, Any]


def narrowed(
    source: Artifact, measure: Measure, fraction: float, options: _Options, env: Env
) -> Artifact:
    """The module in `source` without channels, `fraction` of its `measure` left; as the step."""
    from compressor.pruning.module_pass import run_module

    inside = copy.copy(env)
    inside.work = env.scratch / f"channels-{fraction:.4f}"
    return run_module(
        source, _Channels({measure: fraction}, options.multiple, options.samples), inside
    )


def least_moved(
    module: nn.Module,
    source: Artifact,
    data: Samples,
    samples: int,
    make: Callable[[float], Made],
) -> Made:
    """What `make` makes of the share in `SHARES` whose outputs stay closest to those of `module`.

    Told by the mean squared error on up to `samples` samples, others than the ones channels and
    ranks are chosen on where there are enough. A share that cannot be met is passed over; where
    none can, the first one's error is raised.
    """
    held_out = spread(data, 5 * samples)[2::5] or spread(data, samples)
    best: Made | None = None
    moved: dict[float, float] = {}
    failed: list[CompressError] = []
    for share in SHARES:
        try:
            made = make(share)
        except (Unsupported, UsageError) as error:
            failed.append(error)
            continue
        given = batches_of(source.inputs, data, held_out, 64)
        far = effects.apart(module, made.module, given)
        if best is None or far < min(moved.values()):
            best = made
        moved[share] = far
    if best is None:
        raise failed[0]
    best.facts["notes"] = [*best.facts["notes"], _told(moved, len(held_out))]
    return best


def _told(moved: Mapping[float, float], samples: int) -> str:
    tried = ", ".join(f"{far:.3g} with {share:.0%}" for share, far in moved.items())
    return (
        f"{min(moved, key=lambda share: moved[share]):.0%} of the saving is made by removed "
        f"channels, the rest by ranks: mean squared error on {samples} samples {tried}"
    )
