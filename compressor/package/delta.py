"""A delta: a package as its difference from the one before it, with the same checks at the end.

    delta.json      files of both packages in their order, and the base's digest
    delta.coded     all files of the new package, coded against the old one's (`runtimes.blob`)

Applying it needs the base and gives the new package's files, byte for byte.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from compressor.package.coding import code_files
from compressor.package.reader import open_package
from compressor.package.writing import json_bytes, write_archive
from runtimes.errors import UsageError
from runtimes.unpack import CODING, DELTA_CODED, DELTA_JSON, package_digest


def build_delta(old: Path, new: Path, out: Path) -> Path:
    """Write what turns the package `old` into the package `new`; returns the path of the archive.

    Args:
        old: a package that its devices have.
        new: the one they shall have.
        out: the delta's path, ending in `.tar.gz`.

    Raises:
        UsageError: no such file, `old` or `new` is a delta itself, or the place cannot be written.
        BadArtifact: one of them is damaged or was changed.
    """
    if not out.name.endswith(".tar.gz"):
        raise UsageError("not a package's name", where=str(out), expected="a name in .tar.gz")
    with tempfile.TemporaryDirectory(prefix="compress-delta-") as scratch:
        roots = Path(scratch) / "old", Path(scratch) / "new"
        orders, manifests = [], []
        for path, root in zip((old, new), roots, strict=True):
            found, manifest = open_package(path, root)
            orders.append(sorted(found))
            manifests.append(manifest)
        blob = code_files(roots[1], orders[1], roots[0], orders[0])
        base = {"digest": package_digest(manifests[0]), "files": _sizes(roots[0], orders[0])}
        described = {"version": CODING, "files": _sizes(roots[1], orders[1]), "base": base}
        write_archive(out, [(DELTA_JSON, json_bytes(described)), (DELTA_CODED, blob)])
    return out


def _sizes(root: Path, names: list[str]) -> list[list[Any]]:
    return [[name, (root / name).stat().st_size] for name in names]
