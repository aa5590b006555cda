"""What a pruned artifact's facts and notes say, whatever was pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def of_original(
    earlier: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    """Indices of the original model's channels, where `earlier` had been removed before."""
    found = {layer: sorted(gone) for layer, gone in earlier.items()}
    for layer, gone in now.items():
        old = set(earlier.get(layer, ()))
        left = [i for i in range(max(gone) + len(old) + 1) if i not in old]
        found[layer] = sorted(old | {left[i] for i in gone})
    return found


def summary(facts: Mapping[str, Any]) -> list[str]:
    """What is left of MACs and parameters, and in how many layers channels were removed."""
    shares = [
        f"{name} {before:,} → {facts[key]:,} ({facts[key] / before:.1%} left)"
        for key, name in (("macs", "MACs"), ("parameters", "parameters"))
        if (before := facts[f"{key}_before"])
    ]
    return [f"{', '.join(shares)}; channels removed in {len(facts['removed'])} layers"]
