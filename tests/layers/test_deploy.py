"""What docs/deploy.md shows is real: the OpenVINO program compiles, runs and answers alike."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.layers.tree import ROOT

TEXT = (ROOT / "docs" / "deploy.md").read_text()


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    (found,) = [b for b in blocks if containing in b]
    return found


@pytest.mark.slow
def test_the_openvino_program_runs(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="headers come with the openvino extra")
    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("needs cmake and a C++ compiler")
    (tmp_path / "main.cpp").write_text(block("cpp", "openvino.hpp"))
    (tmp_path / "CMakeLists.txt").write_text(block("cmake", "find_package(OpenVINO"))
    model = models.convnet()
    models.save(model, tmp_path / "model.onnx")
    config = Path(openvino.__file__).parent / "cmake"
    build = tmp_path / "build"
    for command in (
        ["cmake", "-S", tmp_path, "-B", build, f"-DOpenVINO_DIR={config}"],
        ["cmake", "--build", build],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    answer = subprocess.run(
        [build / "classify", tmp_path / "model.onnx"], capture_output=True, text=True, check=True
    )
    expected = models.run(model, {"image": np.full((1, 1, 28, 28), 0.5, np.float32)})["logits"]
    assert int(answer.stdout) == int(expected.argmax())


def test_cpp_snippets_name_the_examples_tensors() -> None:
    for header in ("openvino.hpp", "onnxruntime_cxx_api.h"):
        assert '"image"' in block("cpp", header)
        assert '"logits"' in block("cpp", header)
    assert 'name: "image"' in block("protobuf", "max_batch_size")
