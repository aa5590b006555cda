"""What of new bytes is to be had from old ones: the copies of a delta (as rsync and bsdiff do)."""

from __future__ import annotations

from collections.abc import Sequence

from runtimes.blob import MAX_ROWS, Copy

BLOCK = 16
STEP = 4
# Bytes beyond which nothing is searched: what is no weight is seldom so much.
LIMIT = 8 << 20


def match(new: bytes, old: bytes, places: Sequence[tuple[int, int]]) -> list[Copy]:
    """Copies that make `new` from `old`, searched where `places` say; greedy, longest first."""
    if len(new) > LIMIT or sum(b - a for a, b in places) > LIMIT:
        return []
    known: dict[bytes, int] = {}
    for start, end in places:
        for at in range(start, end - BLOCK + 1, STEP):
            known.setdefault(old[at : at + BLOCK], at)
    copies: list[Copy] = []
    at = literal = 0
    expected = 0  # where the old bytes go on after the last copy
    while at <= len(new) - BLOCK and len(copies) < MAX_ROWS:
        block = new[at : at + BLOCK]
        found = expected if old[expected : expected + BLOCK] == block else known.get(block)
        if found is None:
            at, expected = at + 1, min(expected + 1, len(old))
            continue
        size = _common(new, at, old, found)
        back = _common_before(new, literal, at, old, found)
        copies.append(Copy(at - back - literal, size + back, found - back))
        at += size
        literal, expected = at, found + size
    return copies


def _common(new: bytes, at: int, old: bytes, found: int) -> int:
    """How many bytes are the same from two places on."""
    size, step = 0, BLOCK
    most = min(len(new) - at, len(old) - found)
    while size < most:
        step = min(step, most - size)
        if new[at + size : at + size + step] == old[found + size : found + size + step]:
            size, step = size + step, step * 2
        elif step == 1:
            break
        else:
            step = max(1, step // 2)
    return size


def _common_before(new: bytes, least: int, at: int, old: bytes, found: int) -> int:
    """How many bytes before two places are the same, not before `least` in the new ones."""
    size = 0
    while at - size > least and found > size and new[at - size - 1] == old[found - size - 1]:
        size += 1
    return size
