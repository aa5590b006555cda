"""torch-pruning with its defaults, as a step: magnitude, one ratio for all layers, by hand ratio.

The ratio is a fraction of every layer's channels that goes; it is bisected to the MACs asked for,
which torch-pruning itself leaves to the user.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from compressor.modules import load_module, reference_of, write_module
from compressor.pruning import costs
from compressor.sources.torch_io import example_batch
from exporters.base import Context, Env, Refusal
from runtimes.types import Artifact

REV = 1
ACCEPTS = frozenset({"module"})
PRODUCES = "module"
NEEDS: frozenset[str] = frozenset()
USES: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Options:
    """What stays.

    Attributes:
        macs: share of the MACs.
        round_to: widths are multiples of it; torch-pruning's default is none.
    """

    macs: float = 0.5
    round_to: int = 0


def tools() -> dict[str, str]:
    """torch-pruning's version."""
    import torch_pruning

    return {"torch-pruning": torch_pruning.__version__}


def refusals(source: Artifact, options: Options, context: Context) -> list[Refusal]:
    """None."""
    del source, options, context
    return []


def run(source: Artifact, options: Options, env: Env) -> Artifact:
    """The module at about `options.macs` of its MACs."""
    module = load_module(source, env.factory)
    example = example_batch(source.inputs, env.context.dims, None, env.context.seed)
    whole = costs.count(module, example, "macs")
    low, high, best = 0.0, 0.95, copy.deepcopy(module)
    for _ in range(12):
        ratio = (low + high) / 2
        made = _pruned(module, example, ratio, options.round_to)
        share = costs.count(made, example, "macs") / whole
        low, high = (ratio, high) if share > options.macs else (low, ratio)
        best = made
        if abs(share - options.macs) < 0.01:
            break
    facts = {"macs": costs.count(best, example, "macs"), "notes": [f"pruning_ratio {ratio:.3f}"]}
    return write_module(
        env.work, best, source.inputs, source.outputs, factory=reference_of(source), facts=facts
    )


def _pruned(module: Any, example: Any, ratio: float, round_to: int) -> Any:
    import torch_pruning as tp

    made = copy.deepcopy(module)
    last = [layer for layer in made.modules() if type(layer).__name__ == "Linear"][-1:]
    pruner = tp.pruner.BasePruner(
        made, tuple(example), importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio, ignored_layers=last, round_to=round_to or None,
    )  # fmt: skip
    pruner.step()
    return made
