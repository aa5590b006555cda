"""Near misses of file names, for error messages."""

from __future__ import annotations

import difflib
from pathlib import Path


def closest_file(path: Path) -> Path | None:
    """The entry of `path`'s folder whose name is most like its own, or None.

    An equal ending is no likeness: stems are compared, among entries with the same suffix; an
    equal stem with another suffix counts too.
    """
    if not path.parent.is_dir():
        return None
    here = sorted(path.parent.iterdir())
    stems = {p.stem: p for p in here if p.suffix == path.suffix}
    if close := difflib.get_close_matches(path.stem, stems, 1, 0.7):
        return stems[close[0]]
    return next((p for p in here if p.stem == path.stem), None)
