"""What a pruned artifact's facts and notes say, whatever was pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compressor.pruning.costs import Measure

_SHOWN: tuple[tuple[Measure, str], ...] = (("macs", "MACs"), ("params", "parameters"))


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


def left(before: Mapping[Measure, int], after: Mapping[Measure, int]) -> str:
    """MACs and parameters before and after, as a phrase."""
    return ", ".join(
        f"{name} {before[key]:,} → {after[key]:,} ({after[key] / before[key]:.1%} left)"
        for key, name in _SHOWN
        if before[key]
    )


def article(name: str) -> str:
    """An artifact format with its article."""
    known = {"exported": "an exported (.pt2)", "onnx": "an ONNX", "openvino": "an OpenVINO"}
    return known.get(name, f"a {name}")
