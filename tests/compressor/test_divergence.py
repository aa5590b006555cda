"""The first tensor that leaves the original, on both engines, and the words for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compressor.quantization.divergence import divergence
from compressor.report.damage import compared, divergence_lines
from compressor.result import Divergence, TensorGap
from runtimes.errors import UsageError
from runtimes.types import Artifact
from tests.compressor.quantization.helpers import apply, prepared
from tests.contract import subjects


def found(given: Artifact, candidate: Artifact, target: str) -> Divergence:
    return divergence(given, candidate, subjects.data(given)["calibration"], runtime=target)


def broken(given: Artifact, layer: str, tmp_path: Path) -> Artifact:
    """A copy of an ONNX artifact whose `layer` has lost most of its weights."""
    model = onnx.load(given.path)
    (node,) = [n for n in model.graph.node if n.name == layer]
    (tensor,) = [t for t in model.graph.initializer if t.name == node.input[1]]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[::3] = 0
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    folder = tmp_path / "broken"
    folder.mkdir()
    onnx.save(model, folder / given.entry)
    return Artifact.write(folder, given.format, given.entry, given.inputs, given.outputs)


def test_it_names_the_layer_that_was_broken(tmp_path: Path) -> None:
    given = prepared(tmp_path, "convnet")
    told = found(given, broken(given, "block.conv1", tmp_path), "onnxruntime")
    assert told.first is not None
    assert told.first == told.largest
    assert (told.first.layer, told.first.op) == ("block.conv1", "Conv")
    assert told.first.before_db == 200
    assert told.compared == told.tensors
    assert told.outputs_db == pytest.approx(told.tapped_db, abs=0.1)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_an_untouched_model_does_not_diverge(tmp_path: Path, target: str) -> None:
    given = prepared(tmp_path, "convnet", target)
    told = found(given, given, target)
    assert told.first is None
    assert told.largest is None
    assert told.outputs_db == 200


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("model", ["hardswish_net", "depthwise"])
def test_int8_is_compared_through_its_pairs(tmp_path: Path, model: str, target: str) -> None:
    given = prepared(tmp_path, model, target)
    int8 = apply(tmp_path, given, "quantize_static")
    told = found(given, int8, target)
    assert told.compared > 0.8 * told.tensors
    assert told.largest is not None
    assert told.largest.op not in ("QuantizeLinear", "DequantizeLinear", "FakeQuantize")
    assert 10 < told.largest.sqnr_db < 45
    # With inner tensors as outputs the engine fuses less, and computes the same.
    assert told.outputs_db is not None
    assert told.tapped_db == pytest.approx(told.outputs_db, abs=4)


def test_a_tensor_of_zeros_and_infinities_does_not_count_as_noise() -> None:
    from compressor.quantization.divergence import _ratios

    mask = np.array([[-np.inf, 0.0]], np.float32)
    values = {"mask": mask, "zero": np.zeros(3, np.float32), "index": np.arange(3)}
    assert _ratios(lambda *_: values, lambda *_: values, list(values), [{}]) == {
        "mask": 200.0,
        "zero": 200.0,
    }


def test_formats_an_engine_cannot_open_are_refused(tmp_path: Path) -> None:
    ir = prepared(tmp_path, "convnet", "openvino")
    with pytest.raises(UsageError, match="no way to look inside"):
        found(ir, ir, "onnxruntime")


def test_words() -> None:
    gap = TensorGap("relu1_out", "conv1", "Conv", 12.0, 40.0)
    told = Divergence(9, 12, 32, 20.0, gap, gap, outputs_db=10.0, tapped_db=21.0)
    assert divergence_lines(told) == [
        "first below 20 dB: conv1, tensor relu1_out (Conv), 40.0 dB before it and 12.0 dB after",
        "outputs as the engine runs them: 10.0 dB",
        (
            "the engine's own kernels lose more than the graph: "
            "it gives 21.0 dB where inner tensors are outputs as well"
        ),
    ]
    assert compared(told).startswith("9 of 12 tensors exist in both")
