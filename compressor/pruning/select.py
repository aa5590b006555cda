"""Which groups of channels may lose some: not those the user keeps, not those that cannot."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compressor.pruning import heads, trial
from compressor.pruning.graph import ChannelGroup, find_groups
from runtimes.errors import Refusal, Unsupported, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


_NO_HEADS = "; whole heads cannot go either: no attribute around it holds their number alone"


def select(
    module: nn.Module, example: Sequence[Tensor], keep: Sequence[str]
) -> tuple[list[ChannelGroup], list[Refusal]]:
    """Prunable groups of `module`, and every group that is left alone with the reason.

    `keep` are globs on module names. Raises `Unsupported` where the module cannot be traced or
    nothing is left to prune, `UsageError` where a glob matches no module.
    """
    try:
        found = find_groups(module, example)
    except trial.FAILURES as error:
        raise Unsupported(
            "the module cannot be traced",
            [Refusal(type(module).__name__, f"{type(error).__name__}: {error}")],
            where="prune_channels",
        ) from error
    free, reasons = _without_kept(module, found, keep)
    free, frozen = _without_frozen(module, free)
    reasons += frozen
    usable, refused = removable(module, example, free)
    if not usable:
        raise Unsupported("nothing can be pruned", reasons + refused, where="prune_channels")
    return usable, reasons + refused


def _without_kept(
    module: nn.Module, groups: Sequence[ChannelGroup], keep: Sequence[str]
) -> tuple[list[ChannelGroup], list[Refusal]]:
    kept = kept_layers(module, keep)
    held = [(g, sorted(kept & set(g.producers))) for g in groups]
    reasons = [Refusal(g.name, f"kept: {', '.join(k)}") for g, k in held if k]
    return [g for g, k in held if not k], reasons


def _without_frozen(
    module: nn.Module, groups: Sequence[ChannelGroup]
) -> tuple[list[ChannelGroup], list[Refusal]]:
    """Frozen layers stay as they are, unless all are: then it says nothing about any of them."""
    parameters = list(module.parameters())
    if not any(p.requires_grad for p in parameters):
        return list(groups), []
    frozen = {n.rpartition(".")[0] for n, p in module.named_parameters() if not p.requires_grad}
    frozen |= {n for n, p in module.named_parameters() if not p.requires_grad}  # bare ones
    held = [(g, sorted({m.layer for m in g.members} & frozen)) for g in groups]
    why, fix = "it would change frozen weights (requires_grad is False)", "unfreeze them"
    reasons = [Refusal(g.name, f"{why}: {', '.join(names)}", fix) for g, names in held if names]
    return [g for g, names in held if not names], reasons


def removable(
    module: nn.Module, example: Sequence[Tensor], groups: Sequence[ChannelGroup]
) -> tuple[list[ChannelGroup], list[Refusal]]:
    """The groups that can really lose channels, and the reasons why the others cannot.

    What fails its trial as it is may still go in blocks, as attention heads do (`heads`), or apart
    from what it only meets in a product (`products`). Output layers, and sizes that no attribute
    holds, are left alone.
    """
    kept, failed = _sifted(module, example, groups)

    def inside() -> list[ChannelGroup]:
        return [g for g in groups if failed.get(g.name, (trial.OUTPUTS,))[0] != trial.OUTPUTS]

    def accept(more: Sequence[ChannelGroup]) -> None:
        if more and trial.failure(module, example, [*kept, *more]) is None:
            kept.extend(more)
            done = {layer for g in more for layer in g.producers}
            for group in inside():
                if done.issuperset(group.producers):
                    del failed[group.name]

    found = heads.resolve(
        module, inside(), lambda some: trial.failure(module, example, some, units=1)
    )
    accept([g for g in found.groups if g.units > 1])
    accept(_apart(module, example, inside()))
    heads_too = dict.fromkeys(found.tried, _NO_HEADS)
    return kept, [Refusal(n, why + heads_too.get(n, ""), fix) for n, (why, fix) in failed.items()]


def _sifted(
    module: nn.Module, example: Sequence[Tensor], groups: Sequence[ChannelGroup]
) -> tuple[list[ChannelGroup], dict[str, tuple[str, str]]]:
    """Groups that pass their trial, and name → (reason, fix) of those that do not."""
    kept, failed = trial.sifted(
        [g for g in groups if g.units > 1], lambda part: trial.failure(module, example, part)
    )
    return kept, {group.name: why for group, why in failed if why}


def _apart(
    module: nn.Module, example: Sequence[Tensor], failed: Sequence[ChannelGroup]
) -> list[ChannelGroup]:
    """What of the failed groups can go once products of activations are cut."""
    producers = {layer for g in failed for layer in g.producers}
    if not producers:
        return []
    try:
        read = find_groups(module, example, cut=True)
    except trial.FAILURES:
        return []
    return _sifted(module, example, [g for g in read if producers.issuperset(g.producers)])[0]


def kept_layers(module: nn.Module, keep: Sequence[str]) -> set[str]:
    """Modules that the globs `keep` name; `UsageError` with near misses where one names none."""
    names = [name for name, _ in module.named_modules() if name]
    return {name for pattern in keep for name in matches(pattern, names, "module")}


def matches(pattern: str, names: Sequence[str], what: str) -> list[str]:
    """Those of `names`, of modules or layers, that a glob of `keep.channels` means."""
    found = [n for n in names if fnmatch.fnmatchcase(n, pattern)]
    if not found:
        close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
        raise UsageError(
            f"matches no {what}",
            where=f"keep.channels {pattern!r}",
            fix=f"did you mean {', '.join(close)}?" if close else f"one of {', '.join(names[:8])}",
        )
    return found
