"""Which groups of channels may lose some: not those the user keeps, not those that cannot."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compressor.pruning.graph import ChannelGroup, find_groups, removable
from runtimes.errors import Refusal, Unsupported, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn


def select(
    module: nn.Module, example: Sequence[Tensor], keep: Sequence[str]
) -> tuple[list[ChannelGroup], list[Refusal]]:
    """Prunable groups of `module`, and every group that is left alone with the reason.

    `keep` are globs on module names. Raises `Unsupported` where the module cannot be traced or
    nothing is left to prune, `UsageError` where a glob matches no module.
    """
    try:
        found = find_groups(module, example)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError, KeyError) as error:
        raise Unsupported(
            "the module cannot be traced",
            [Refusal(type(module).__name__, f"{type(error).__name__}: {error}")],
            where="prune_channels",
        ) from error
    free, reasons = _without_kept(module, found, keep)
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
