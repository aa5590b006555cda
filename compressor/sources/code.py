"""Digests of the user's code behind a `module:function` reference, without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from runtimes.types import sha256_of


def code_digests(reference: str, base_dir: Path) -> dict[str, str]:
    """File (relative to its import root) → SHA-256: the module's and all it imports from there.

    A module installed elsewhere is followed within its own top-level package; one that cannot be
    found is left to the import, which says so.
    """
    name = reference.partition(":")[0]
    root = _root_of(name, base_dir)
    if root is None:
        return {}
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        for path in _files(waiting.pop(), root):
            key = path.relative_to(root).as_posix()
            if key not in found:
                found[key] = sha256_of(path)
                waiting += _imports(path, root)
    return dict(sorted(found.items()))


def _root_of(name: str, base_dir: Path) -> Path | None:
    top = name.partition(".")[0]
    if list(_files(top, base_dir)) or (base_dir / top).is_dir():
        return base_dir
    spec = PathFinder.find_spec(top)
    places = list(spec.submodule_search_locations or []) if spec else []
    if places:
        return Path(places[0]).parent
    return Path(spec.origin).parent if spec and spec.origin else None


def _files(name: str, root: Path) -> Iterator[Path]:
    """The module's file, and the `__init__.py` of each package on the way."""
    place = root
    for part in name.split("."):
        place = place / part
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                yield path


def _imports(path: Path, root: Path) -> list[str]:
    """Dotted names of modules under `root` that the file imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return []  # the import will say so
    package = path.relative_to(root).parent.parts
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)]
    return [name for name in names if name]
