from __future__ import annotations

import numpy as np
import onnx
import pytest

from runtimes.errors import Unsupported
from tests.compressor.quantization.helpers import apply, prepared, refused
from tests.contract.subjects import onnx_artifact

pytest.importorskip("onnxslim", reason="needs the optimize extra")


def test_fewer_nodes_and_the_same_results(tmp_path):
    given = onnx_artifact(tmp_path / "in", "convnet")
    made = apply(tmp_path, given, "simplify_graph")
    before, after = (len(onnx.load(str(a.path)).graph.node) for a in (given, made))
    assert after < before
    assert "folded or fused" in made.facts["notes"][-1]
    feeds = {"image": np.random.default_rng(0).random((3, 1, 28, 28)).astype(np.float32)}
    from runtimes.rt_onnxruntime import open_session

    with open_session(given) as a, open_session(made) as b:
        np.testing.assert_allclose(
            b.run(feeds)["logits"], a.run(feeds)["logits"], rtol=1e-4, atol=1e-4
        )


def test_nothing_to_do_is_said(tmp_path):
    made = apply(tmp_path / "a", onnx_artifact(tmp_path / "in", "convnet"), "simplify_graph")
    with pytest.raises(Unsupported, match="nothing to simplify"):
        apply(tmp_path / "b", made, "simplify_graph")


def test_metadata_and_dimensions_stay(tmp_path):
    given = onnx_artifact(tmp_path / "in", "convnet")
    model = onnx.load(str(apply(tmp_path, given, "simplify_graph").path))
    assert {p.key: p.value for p in model.metadata_props} == dict(given.facts["metadata"])
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_prints_nothing(tmp_path, capfd):
    apply(tmp_path, onnx_artifact(tmp_path / "in", "convnet"), "simplify_graph")
    assert capfd.readouterr() == ("", "")


def test_quantized_models_are_refused(tmp_path):
    from dataclasses import replace

    made = apply(tmp_path, prepared(tmp_path, "mlp"), "quantize_static")
    (reason,) = refused(replace(made, format="onnx"), "simplify_graph")
    assert "folding would turn its weights to float" in reason.why
