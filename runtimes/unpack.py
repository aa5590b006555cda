"""Make an unarchived package whole: decode its model, or apply a delta to the package before it.

Nothing from the package is executed, and what its JSON says is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from runtimes.blob import decode
from runtimes.errors import BadArtifact, UsageError
from runtimes.types import canonical, sha256_of

CODING = 1
LIMIT_BYTES = 4 << 30
MANIFEST_JSON = "manifest.json"
CODED = "model.coded"
DELTA_JSON, DELTA_CODED = "delta.json", "delta.coded"
REFETCH = "fetch the package again, or build it again"
Sizes = List[Tuple[str, int]]


def restore(
    root: Path,
    base: Optional[Path] = None,
    *,
    where: str = "",
    base_where: str = "",
    limit_bytes: int = LIMIT_BYTES,
) -> List[str]:
    """Write the files that stand coded in `root`, and remove the coded ones.

    Args:
        root: an unarchived package.
        base: the package that a delta was made from: a folder that is whole.
        where: what errors call the package.
        base_where: what they call the base.
        limit_bytes: refuse to write more.

    Returns:
        The names of the files written; none for a package that is not coded.

    Raises:
        UsageError: a delta without its base, or the folder cannot be written.
        BadArtifact: damaged, of another version, too large, or made from another base.
    """
    where = where or str(root)
    delta = (root / DELTA_JSON).is_file()
    described = _json(root / DELTA_JSON, where) if delta else coding_of(root, where)
    if described is None:
        return []
    coded = root / (DELTA_CODED if delta else CODED)
    files = _sizes(described.get("files"), where)
    if not delta and not coded.is_file() and all((root / name).is_file() for name, _ in files):
        return []  # done before
    if described.get("version") != CODING:
        got = str(described.get("version"))[:40]
        raise BadArtifact("coding of another version", where=where, expected=str(CODING), got=got)
    total = sum(size for _, size in files)
    if total > limit_bytes:
        raise BadArtifact(
            "unpacks to more than the limit",
            where=where,
            expected=f"at most {limit_bytes:,} bytes",
            fix="if it is meant to be this large, verify it with a larger limit",
        )
    before = _base(described.get("base"), base, where, base_where or str(base)) if delta else b""
    try:
        data = decode(coded.read_bytes(), total, before)
    except FileNotFoundError as error:
        raise BadArtifact(f"{coded.name} is missing", where=where, fix=REFETCH) from error
    except BadArtifact as error:
        raise BadArtifact(error.what, where=where, fix=REFETCH) from error
    _write(root, files, data, where)
    for name in (coded.name, DELTA_JSON):
        if (root / name).is_file():
            (root / name).unlink()
    return [name for name, _ in files]


def coding_of(root: Path, where: str) -> Optional[Dict[str, Any]]:
    """What the manifest says of the model's coding; None where it lies there as it is."""
    if not (root / MANIFEST_JSON).is_file():
        return None  # the reader says that this is no package
    coding = _json(root / MANIFEST_JSON, where).get("coding")
    if coding is not None and not isinstance(coding, dict):
        raise BadArtifact("manifest.json: coding is of the wrong type", where=where)
    return coding


def package_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over the digests of a package's files: what a delta knows its base by."""
    files = manifest["files"]
    return hashlib.sha256(canonical({name: files[name]["sha256"] for name in files})).hexdigest()


def plain_name(name: str) -> bool:
    """Whether a file's name in a package stays inside it and has no odd characters."""
    parts = name.split("/")
    dots = any(part in ("", ".", "..") for part in parts)
    odd = "\\" in name or ":" in name or not name.isprintable() or len(name) > 255
    return not dots and not odd


def _json(path: Path, where: str) -> Dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadArtifact(f"unreadable {path.name}: {error}", where=where) from error
    if not isinstance(data, dict):
        raise BadArtifact(f"unreadable {path.name}: not an object", where=where)
    return data


def _sizes(files: Any, where: str) -> Sizes:
    """Names and sizes as they stand in a package's JSON, checked."""
    found: Sizes = []
    entries: List[Any] = files if isinstance(files, list) else [[]]
    for entry in entries:
        sound = isinstance(entry, list) and [type(part) for part in entry] == [str, int]
        if not sound or entry[1] < 0:
            raise BadArtifact("the coding does not say which files it holds", where=where)
        found.append((entry[0], entry[1]))
    names = [name for name, _ in found]
    odd = [name for name in names if not plain_name(name)]
    if odd or len({name.casefold() for name in names}) != len(names):
        shown = "".join(c if c.isprintable() else "?" for c in (odd or names)[0])[:200]
        raise BadArtifact(
            "a coded file's name is not plain, or stands twice",
            where=f"{where}: {shown}",
            fix=REFETCH,
        )
    return found


def _base(described: Any, base: Optional[Path], where: str, called: str) -> bytes:
    """The base's files one after another, after making sure that they are the right ones."""
    if not isinstance(described, dict) or not isinstance(described.get("digest"), str):
        raise BadArtifact("delta.json does not name its base", where=where, fix=REFETCH)
    if base is None:
        raise UsageError(
            "a delta needs the package that it was made from",
            where=where,
            expected="a base of digest " + described["digest"][:12],
            fix="name it with --base",
        )
    manifest = _json(base / MANIFEST_JSON, called)
    try:
        digest = package_digest(manifest)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadArtifact("unreadable manifest.json", where=called) from error
    if digest != described["digest"]:
        raise BadArtifact(
            "the delta was made from another base",
            where=where,
            expected="a package of digest " + described["digest"][:12],
            got=f"{digest[:12]} ({called})",
            fix="name the package that was given to `compress delta` first",
        )
    made = bytearray()
    for name, size in _sizes(described.get("files"), where):
        path = base / name
        wanted = manifest["files"].get(name, {}).get("sha256")
        known = name == MANIFEST_JSON or (path.is_file() and sha256_of(path) == wanted)
        if not known or path.stat().st_size != size:
            raise BadArtifact("the base was changed: " + name, where=called, fix=REFETCH)
        made += path.read_bytes()
    return bytes(made)


def _write(root: Path, files: Sizes, data: bytearray, where: str) -> None:
    at = 0
    view = memoryview(data)
    for name, size in files:
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                stream.write(view[at : at + size])
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise BadArtifact("a coded file stands there already: " + name, where=where,
                              fix=REFETCH) from error  # fmt: skip
        except OSError as error:
            raise UsageError(
                f"cannot unpack: {error.strerror}", where=where, fix="make room on the disk"
            ) from error
        at += size


def check(root: Path) -> int:
    """Compare every file with the manifest and count them; `BadArtifact` names what differs."""
    files = _json(root / MANIFEST_JSON, str(root)).get("files")
    if not isinstance(files, dict):
        raise BadArtifact("manifest.json names no files", where=str(root), fix=REFETCH)
    for name, entry in sorted(files.items()):
        known = isinstance(entry, dict) and plain_name(name) and (root / name).is_file()
        if not known or sha256_of(root / name) != entry.get("sha256"):
            raise BadArtifact(
                f"file is missing or was changed: {name}", where=str(root), fix=REFETCH
            )
    return len(files)
