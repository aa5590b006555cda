"""Imports go downward, and nothing heavy is imported before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layers.tree import HEAVY, ROOT, at_import, imported, parsed, short, sources


def test_layer_contracts_hold() -> None:
    pytest.importorskip("importlinter", reason="a development tool")
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [str(tool), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sources(), ids=short)
def test_no_heavy_import_at_module_level(path: Path) -> None:
    names = {name.split(".")[0] for name in imported(at_import(parsed(path)))}
    assert not names & HEAVY


@pytest.mark.parametrize("path", sources("runtimes"), ids=short)
def test_runtimes_need_only_the_standard_library_and_numpy(path: Path) -> None:
    names = {name.split(".")[0] for name in imported(at_import(parsed(path)))}
    assert names <= set(sys.stdlib_module_names) | {"numpy", "runtimes"}


@pytest.mark.parametrize("path", sources("exporters"), ids=short)
def test_targets_do_not_import_each_other(path: Path) -> None:
    named = set(imported(ast.walk(parsed(path))))
    others = {n.split(".")[1] for n in named if n.startswith("exporters.to_")}
    assert others <= {path.stem}


def test_passes_do_not_import_each_other() -> None:
    for path in sources("compressor"):
        if path.parent.name == "passes":
            named = set(imported(ast.walk(parsed(path))))
            assert not {n for n in named if n.startswith("compressor.passes.")}, short(path)


def test_only_timing_owns_a_clock() -> None:
    clocks = {"time.perf_counter", "time.perf_counter_ns"}
    allowed = {"runtimes/timing.py", "runtimes/trt/timing.py"}  # on a board `trt` is alone
    found = set()
    for path in sources():
        calls = {
            ast.unparse(node) for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)
        }
        if calls & clocks or set(imported(ast.walk(parsed(path)))) & clocks:
            found.add(short(path))
    assert found <= allowed
