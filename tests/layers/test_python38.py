"""What travels to a board runs on Python 3.8: older JetPack has nothing newer."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.layers.tree import ROOT, parsed, short, sources

TRAVELS = [*sources("runtimes"), ROOT / "exporters" / "base.py"]
BUILTIN_GENERICS = {"dict", "frozenset", "list", "set", "tuple", "type"}


@pytest.mark.parametrize("path", TRAVELS, ids=short)
def test_parses_as_38(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 8))


@pytest.mark.parametrize("path", TRAVELS, ids=short)
def test_annotations_are_not_evaluated(path: Path) -> None:
    tree = parsed(path)
    annotated = any(isinstance(n, (ast.AnnAssign, ast.FunctionDef)) for n in ast.walk(tree))
    future = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    assert future or not annotated


@pytest.mark.parametrize("path", TRAVELS, ids=short)
def test_no_builtin_generics_outside_annotations(path: Path) -> None:
    used = [n for n in _evaluated(parsed(path)) if isinstance(n, ast.Subscript)]
    names = {n.value.id for n in used if isinstance(n.value, ast.Name)}
    assert not names & BUILTIN_GENERICS


@pytest.mark.parametrize("path", TRAVELS, ids=short)
def test_nothing_newer_than_38_is_used(path: Path) -> None:
    vermin = pytest.importorskip("vermin", reason="a development tool")
    visitor = vermin.visit(path.read_text(encoding="utf-8"))
    _, newest = visitor.minimum_versions()
    assert newest is None or newest <= (3, 8), visitor.output_text()


@pytest.mark.parametrize("path", TRAVELS, ids=short)
def test_compiles_on_a_real_38(path: Path) -> None:
    python = _python38()
    if python is None:
        pytest.skip("no Python 3.8 on this machine")
    source = f"compile(open({str(path)!r}, encoding='utf-8').read(), 'file', 'exec')"
    subprocess.run([python, "-c", source], check=True, timeout=60)


def _evaluated(tree: ast.AST):
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _evaluated(child)


def _python38() -> str | None:
    known = sorted(Path.home().glob(".pyenv/versions/3.8.*/bin/python"))
    return str(known[-1]) if known else shutil.which("python3.8")
