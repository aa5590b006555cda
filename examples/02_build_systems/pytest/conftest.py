"""A fixture: the compressed model, made once a session. An unchanged model comes from the store."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import compressor

MODEL_DIR = Path(os.environ.get("MODEL_DIR", "."))


@pytest.fixture(scope="session")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> compressor.Result:
    """The run's result; `compressed.artifacts["onnxruntime"]` is what would ship."""
    recipe = {
        "metric": "top1",
        "targets": {"onnxruntime": {}},
        "gates": ["accuracy_drop<=2%", "size_reduction>=60%"],
        "measure": {"effort": "quick"},
    }
    return compressor.compress(
        MODEL_DIR / "model.onnx",
        recipe,
        calibration=MODEL_DIR / "calib.npz",
        evaluation=dict(np.load(MODEL_DIR / "eval.npz")),
        out=tmp_path_factory.mktemp("compressed"),
    )
