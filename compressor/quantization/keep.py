"""Which nodes the user wants left in float: globs on names, and op types."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from exporters.base import Keep
from runtimes.errors import UsageError


@dataclass(frozen=True)
class Named:
    """A node as patterns see it: name, op types, and every other name a user may know it by."""

    name: str
    ops: tuple[str, ...]
    aliases: tuple[str, ...] = ()


def kept(nodes: Iterable[Named], keep: Keep) -> dict[str, str]:
    """Node name → the pattern or op type that keeps it float.

    A pattern matches a node's own name, its tensors' names, and the name of the layer its weights
    belong to (`head` for `head.weight`). Raises `UsageError` with near misses for one that
    matches nothing.
    """
    found: dict[str, str] = {}
    known = list(nodes)
    for pattern in keep.float:
        hits = [node for node in known if any(fnmatchcase(n, pattern) for n in names_of(node))]
        if not hits:
            raise _nothing(pattern, sorted({n for node in known for n in names_of(node)}), "node")
        for node in hits:
            found.setdefault(node.name, f"keep.float {pattern}")
    for op in keep.float_ops:
        hits = [node for node in known if op in node.ops]
        if not hits:
            raise _nothing(op, sorted({o for node in known for o in node.ops}), "op type")
        for node in hits:
            found.setdefault(node.name, f"keep.float op {op}")
    return found


def names_of(node: Named) -> list[str]:
    """Every name a pattern may match `node` by."""
    layers = (name.rpartition(".")[0] for name in node.aliases)
    return [name for name in (node.name, *node.aliases, *layers) if name]


def exactly(name: str) -> str:
    """`name` as a keep pattern that matches nothing else."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _nothing(pattern: str, names: Sequence[str], what: str) -> UsageError:
    bare = pattern.replace("*", "")
    near = difflib.get_close_matches(bare, names, n=3, cutoff=0.5)
    near += [name for name in names if bare and bare.lower() in name.lower()][:3]
    return UsageError(
        f"no {what} matches",
        where=f"keep.float {pattern!r}",
        expected=f"one of {len(names)} names"
        + (f", such as {', '.join(names[:4])}" if names else ""),
        fix="did you mean " + ", ".join(dict.fromkeys(near)) + "?" if near else "drop the pattern",
    )
