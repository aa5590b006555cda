"""The third example: both recipes on a machine without a GPU, each ending in a checked bundle."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compressor
from runtimes.trt.bundle import read_bundle

EXAMPLE = Path(__file__).parent.parent / "examples" / "03_tensorrt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The example beside what `make_model.py` writes."""
    root = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, root / "examples" / "03_tensorrt")
    script = EXAMPLE.parent / "02_build_systems" / "make_model.py"
    command = [sys.executable, str(script), str(root / "out" / "03")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "FileNotFoundError: Fashion-MNIST" in done.stderr:
        pytest.skip("Fashion-MNIST is not on this machine: apt-get install dataset-fashion-mnist")
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize(
    ("name", "precision", "gpus"), [("recipe", "int8", 75), ("recipe_fp8", "fp8", 89)]
)
@pytest.mark.slow
def test_a_recipe_ends_in_a_bundle_with_only_the_boards_gates_open(name, precision, gpus, folder):
    recipe = folder / "examples" / "03_tensorrt" / f"{name}.yaml"
    result = compressor.compress(None, recipe, out=folder / name, store=folder / "store")
    assert result.exit_code == 0
    bundle = read_bundle(folder / name / "tensorrt")  # digests too
    assert (bundle.data["precision"], min(bundle.data["requires"]["sm"])) == (precision, gpus)
    (image,) = bundle.data["inputs"]
    assert [image[side][0] for side in ("min", "opt", "max")] == [1, 8, 16]
    target = result.record.target("tensorrt")
    chosen = target.candidate(target.shipped)
    assert {c.state for c in chosen.checks if c.gate.startswith(("p50", "speedup"))} == {
        "not_judged"
    }


def test_the_readme_names_every_file_and_what_the_recipes_say():
    text = (EXAMPLE / "README.md").read_text()
    for path in EXAMPLE.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in text
