"""The budget that keeps files and functions readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.layers.tree import parsed, short, sources

FILE_LINES = 400
FUNCTION_LINES = 60


@pytest.mark.parametrize("path", sources(), ids=short)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", sources(), ids=short)
def test_functions_are_short(path: Path) -> None:
    functions = (
        n for n in ast.walk(parsed(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    too_long = {f.name for f in functions if _lines(f) > FUNCTION_LINES}
    assert not too_long


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code: a long explanation is no reason to split a function."""
    whole = (function.end_lineno or 0) - function.lineno + 1
    return whole - len((ast.get_docstring(function, clean=False) or "").splitlines())
