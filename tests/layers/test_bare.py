"""What works where nothing heavy is installed: every module imports, and the CLI answers.

A meta-path hook refuses the heavy packages in a fresh interpreter, so what this asserts holds
whatever happens to be installed here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.layers.tree import CORE, HEAVY, ROOT, modules

HOOK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked here: " + name, name=name)
sys.meta_path.insert(0, Refuse())
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
    if not (ROOT / "compressor" / "cli.py").exists():
        pytest.skip("compressor/cli.py is not there yet")
    code = f"""
sys.argv = ["compress", *{arguments!r}]
from compressor.cli import entry
sys.exit(entry())
"""
    return python(code, blocked)


def test_every_module_imports() -> None:
    code = f"import importlib\nfor name in {modules()!r}: importlib.import_module(name)"
    if "compressor.__main__" in modules():
        code = code.replace("'compressor.__main__', ", "").replace("'runtimes.__main__', ", "")
    done = python(code, HEAVY)
    assert done.returncode == 0, done.stderr


def test_the_hook_blocks() -> None:
    assert "blocked here: onnx" in python("import onnx", HEAVY).stderr


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("targets",), ("doctor",)])
def test_the_command_line_answers(arguments: tuple[str, ...]) -> None:
    done = cli(*arguments, blocked=HEAVY)
    # Doctor's answer may be that something is missing (4), but it is an answer.
    assert done.returncode in ((0, 4) if arguments == ("doctor",) else (0,)), done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    if not (ROOT / "compressor" / "cli.py").exists():
        pytest.skip("compressor/cli.py is not there yet")
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
    models = pytest.importorskip("tests.models", reason="tests/models.py is not there yet")
    source = models.write_model(tmp_path / "model.onnx", "conv")
    target = ("--target", "onnxruntime", "-o", str(tmp_path / "out"))
    done = cli("plan", str(source), *target, blocked=HEAVY - CORE)
    assert done.returncode == 0, done.stderr
    assert "cast_half" in done.stdout or "half" in done.stdout
