from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compressor.quantization.ledger import ledger
from runtimes.types import Artifact
from tests import models
from tests.compressor.quantization.helpers import apply, prepared
from tests.contract import subjects

STEPS = {
    "float": (),
    "half": ("cast_half",),
    "int8": ("quantize_static",),
    "int8-w4": ("quantize_static", "quantize_weights"),
    "w4": ("quantize_weights",),
}


def kinds(artifact: Artifact) -> dict[str, int]:
    rows = ledger(artifact)
    assert sum(row.size_bytes for row in rows) == artifact.size_bytes
    assert all(row.size_bytes > 0 for row in rows)
    return {row.kind: row.size_bytes for row in rows}


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("rung", STEPS)
def test_rows_sum_to_the_files(target, rung, tmp_path):
    made = prepared(tmp_path, "convnet", target)
    for number, step in enumerate(STEPS[rung]):
        made = apply(tmp_path / str(number), made, step)
    found = kinds(made)
    expected = {"float": "float", "half": "half", "int8": "int8", "int8-w4": "int4", "w4": "int4"}
    assert max((k for k in found if k.startswith("weights")), key=found.get) == (
        "weights " + expected[rung]
    )


@pytest.mark.parametrize("name", sorted(models.ALL))
def test_rows_sum_for_every_model(name, tmp_path):
    assert kinds(subjects.onnx_artifact(tmp_path / "in", name))["graph"] > 0


def test_weights_are_counted_to_the_byte(tmp_path):
    made = prepared(tmp_path, "mlp")
    assert kinds(made)["weights float"] == 4 * (28 * 28 * 64 + 64 * 64 + 64 * 10)
    four = apply(tmp_path, apply(tmp_path, made, "quantize_static"), "quantize_weights", share=1.0)
    assert kinds(four)["weights int4"] == (28 * 28 * 64 + 64 * 64 + 64 * 10) // 2


def test_external_data_is_counted(tmp_path: Path):
    root = tmp_path / "external"
    root.mkdir()
    model = models.external_data(root / "model.onnx")
    specs = subjects.onnx_artifact(tmp_path / "in", "mlp")
    made = Artifact.write(root, "onnx", "model.onnx", specs.inputs, specs.outputs)
    assert len(made.files) == 2
    assert kinds(made)["weights float"] > 0.9 * made.size_bytes
    assert isinstance(model, onnx.ModelProto)


def test_modules(tmp_path):
    made = subjects.source(tmp_path, "module")
    found = kinds(made)
    assert found["weights float"] > 0
    assert found["graph"] < made.size_bytes


def test_values_outside_raw_data_are_counted(tmp_path):
    values = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [8, 8], np.ones(64))
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    infos = [onnx.helper.make_tensor_value_info(n, 1, ["n", 8]) for n in "xy"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", infos[:1], infos[1:], [values])
    )
    tmp_path.joinpath("model.onnx").write_bytes(model.SerializeToString())
    found = kinds(Artifact.write(tmp_path, "onnx", "model.onnx", [], []))
    assert found["weights float"] >= 256
