"""What works where nothing heavy is installed: every module imports, and the CLI answers.

A fresh interpreter is made blind to the heavy packages, modules and metadata alike, so what this
asserts holds whatever happens to be installed here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import models
from tests.layers.tree import CORE, HEAVY, ROOT, modules

HOOK = """
import sys
from importlib.machinery import PathFinder
class Without:
    blocked = {blocked!r}
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in self.blocked else PathFinder.find_spec(name, path)
    def find_distributions(self, *args):
        for found in PathFinder.find_distributions(*args):
            if found.name.replace("-", "_").lower() not in {{b.lower() for b in self.blocked}}:
                yield found
sys.meta_path[:] = [Without() if finder is PathFinder else finder for finder in sys.meta_path]
"""


def python(
    code: str, blocked: Iterable[str] = (), env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that cannot import `blocked`."""
    return subprocess.run(
        [sys.executable, "-c", HOOK.format(blocked=set(blocked)) + code],
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1"} | (env or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def cli(*arguments: str, blocked: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh interpreter that cannot import `blocked`."""
    code = f"""
sys.argv = ["compress", *{arguments!r}]
from compressor.cli import entry
sys.exit(entry())
"""
    return python(code, blocked)


def test_every_module_imports() -> None:
    names = [name for name in modules() if not name.endswith("__main__")]
    done = python(f"import importlib\nfor name in {names!r}: importlib.import_module(name)", HEAVY)
    assert done.returncode == 0, done.stderr


def test_blocked_packages_look_absent() -> None:
    code = """
import importlib.metadata, importlib.util
assert importlib.util.find_spec("onnx") is None
assert importlib.util.find_spec("numpy") is not None
print(sorted(d.name for d in importlib.metadata.distributions() if d.name in ("onnx", "numpy")))
"""
    assert python(code, HEAVY).stdout.strip() == "['numpy']"
    assert "No module named 'onnx'" in python("import onnx", HEAVY).stderr


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("targets",), ("doctor",)])
def test_the_command_line_answers(arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, blocked=HEAVY)
    # Doctor's answer may be that something is missing (4), but it is an answer.
    assert done.returncode in ((0, 4) if arguments == ("doctor",) else (0,)), done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = """
sys.argv = ["compress", "--help"]
from compressor.cli import entry
try:
    entry()
except SystemExit:
    pass
print("MODULES", *sorted({name.split(".")[0] for name in sys.modules}))
"""
    done = python(code)
    loaded = set(done.stdout.rpartition("MODULES")[2].split())
    assert "argparse" in loaded
    assert not loaded & (HEAVY | {"numpy"}), loaded & (HEAVY | {"numpy"})


def test_plan_of_an_onnx_model_needs_the_core_alone(tmp_path: Path) -> None:
    source = models.save(models.convnet(), tmp_path / "model.onnx")
    done = cli("plan", str(source), "--target", "onnxruntime", blocked=HEAVY - CORE)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout
