from __future__ import annotations

import numpy as np
import onnx
import pytest

from compressor.quantization.half import castable
from compressor.quantization.ledger import ledger
from exporters.base import Keep
from runtimes.errors import Unsupported
from tests.compressor.quantization.helpers import apply, executed, prepared, sqnr_db
from tests.runtimes.artifacts import artifact_of

BOTH = pytest.mark.parametrize("target", ["onnxruntime", "openvino"])


@BOTH
@pytest.mark.parametrize("model", ["convnet", "gru", "transformer_block"])
def test_half_the_bytes_and_the_same_kernels(target, model, tmp_path):
    given = prepared(tmp_path, model, target)
    made = apply(tmp_path, given, "cast_half")
    kinds = {row.kind: row.size_bytes for row in ledger(made)}
    before = {row.kind: row.size_bytes for row in ledger(given)}
    assert kinds["weights half"] * 2 == before["weights float"]
    assert executed(made) == executed(given)
    assert sqnr_db(given, made) > 40


@BOTH
def test_kept_layers_stay(target, tmp_path):
    keep = Keep(float=("fc1",))
    made = apply(tmp_path, prepared(tmp_path, "mlp", target), "cast_half", keep=keep)
    kinds = {row.kind: row.size_bytes for row in ledger(made)}
    assert kinds["weights float"] == 4 * 28 * 28 * 64


@BOTH
def test_a_second_time_has_nothing_left(target, tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "mlp", target), "cast_half", least=1)
    with pytest.raises(Unsupported, match="no float32 weight"):
        apply(tmp_path, made, "cast_half")


def test_values_beyond_the_range_stay_and_are_said(tmp_path):
    given = onnx.load(str(prepared(tmp_path, "mlp").path))
    (weight,) = [t for t in given.graph.initializer if t.name == "fc2.weight"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] = 70000.0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    artifact = artifact_of(given, tmp_path / "wide")
    assert "fc2.weight" not in castable(artifact, 64, Keep())
    made = apply(tmp_path, artifact, "cast_half")
    assert "kept float32, beyond float16's range: fc2.weight" in made.facts["notes"]
    left = {t.name: t for t in onnx.load(str(made.path)).graph.initializer}
    assert onnx.numpy_helper.to_array(left["fc2.weight"]).dtype == np.float32
