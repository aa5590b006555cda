"""ONNX files as they come: old operator sets, no names, branches, one sample; all quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from compressor.quantization.conformance import violations
from compressor.sources import SourceSpec, open_source
from compressor.steps import load_step, parse_options
from exporters._schemes import ONNXRUNTIME
from exporters.base import StepSpec
from runtimes.errors import Unsupported
from runtimes.types import Artifact
from tests import models
from tests.compressor.quantization.helpers import apply, sqnr_db
from tests.contract import subjects
from tests.net import Net
from tests.step_env import ArraySamples, make_env


def source(model: ModelProto, tmp_path: Path) -> Artifact:
    """The artifact a run makes of a user's file, in ONNX Runtime's own format."""
    given, made = tmp_path / "given.onnx", tmp_path / "source"
    onnx.save(model, given)
    made.mkdir()
    spec = SourceSpec(given, weights=None, inputs={}, outputs=None, base_dir=tmp_path, shapes={})
    return subjects.run(tmp_path, "to_onnxruntime", open_source(spec, made), label="export")


def old(opset: int) -> ModelProto:
    """Operators whose attributes became inputs since, and a Softmax that meant something else."""
    net = Net(0)
    x = net.op("Conv", "image", net.weight("a.w", 8, 1, 3, 3), name="a", pads=[1] * 4)
    edges = [0, 0, 1, 1, 0, 0, 1, 1]
    if opset < 11:
        x = net.op("Clip", x, name="relu6", min=0.0, max=6.0)
        x = net.op("Pad", x, name="pad", pads=edges, mode="constant", value=0.0)
    else:
        x = net.op("Clip", x, net.constant("low", 0), net.constant("high", 6), name="relu6")
        x = net.op("Pad", x, net.constant("edges", edges, np.int64), name="pad")
    x = net.op("Conv", x, net.weight("b.w", 8, 8, 3, 3), name="b", strides=[2, 2])
    scales = net.constant("scales", [1, 1, 2, 2])
    if opset < 11:
        x = net.op("Upsample" if opset < 10 else "Resize", x, scales, name="up", mode="nearest")
    else:
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        x = net.op("Resize", x, net.constant("roi", []), scales, name="up", mode="nearest", **how)
    if opset < 10:
        x = net.op("Slice", x, name="cut", axes=[2, 3], starts=[1, 1], ends=[9, 9])
    else:
        at = {"start": [1, 1], "end": [9, 9], "axes": [2, 3]}
        ends = [net.constant(name, value, np.int64) for name, value in at.items()]
        x = net.op("Slice", x, *ends, name="cut")
    x = net.op("ReduceMean", x, name="mean", axes=[2, 3], keepdims=1)
    x = net.op("Dropout", net.op("Squeeze", x, name="squeeze", axes=[2, 3]), name="drop")
    x = net.op("Softmax", net.gemm(x, "head", 8, 10), name="softmax", axis=1)
    model = net.model({"image": ["batch", 1, 28, 28]}, {"p": (x, ["batch", 10])}, opset=opset)
    model.ir_version = {9: 4, 10: 5, 11: 6, 12: 7}[opset]
    return model


@pytest.mark.parametrize("opset", [9, 10, 11, 12])
def test_old_operator_sets_are_raised_and_quantized(opset: int, tmp_path: Path) -> None:
    model = old(opset)
    given = source(model, tmp_path)
    feeds = {"image": models.fashion_like(4, seed=3)["image"]}
    with subjects.opened(given) as session:
        np.testing.assert_allclose(
            session.run(feeds)["p"], models.run(model, feeds)["p"], atol=1e-5
        )
    assert given.facts["opset"] == 21
    made = apply(tmp_path, given, "quantize_static")
    assert sqnr_db(given, made) > 30
    assert violations(made, ONNXRUNTIME) == []


def nameless(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = ""


def same_name(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = "same"


def weight_twice(model: ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def own_activation(model: ModelProto) -> None:
    """An operator of ONNX Runtime's own domain, whose types shape inference does not know."""
    node = next(n for n in model.graph.node if n.name == "relu3")
    node.op_type, node.domain = "QuickGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


@pytest.mark.parametrize("spoil", [nameless, same_name, weight_twice, own_activation])
def test_odd_files_are_quantized_all_the_same(
    spoil: Callable[[ModelProto], None], tmp_path: Path
) -> None:
    model = models.convnet()
    spoil(model)
    given = source(model, tmp_path)
    made = apply(tmp_path, given, "quantize_static")
    rows = [row["layer"] for row in made.facts["requested"]]
    assert len(set(rows)) == len(rows)
    assert sum(row["requested"] == "int8" for row in made.facts["requested"]) >= 4
    assert sqnr_db(given, made) > 25


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_one_sample_is_enough_to_run(target: str, tmp_path: Path) -> None:
    if target == "openvino":
        pytest.importorskip("nncf", reason="needs the openvino extra")
    given = subjects.source(tmp_path, target)
    data = {"calibration": ArraySamples({"image": models.fashion_like(1)["image"]})}
    context = subjects.context("quantize_static", given.format)
    env = make_env(tmp_path, reference=given, data=data, context=context)
    options = parse_options(StepSpec("quantize_static"), "quantize_static")
    made = load_step("quantize_static").run(given, options, env)
    assert made.facts["quantization"]["samples"] == 1
    assert sqnr_db(given, made) > 10


def test_a_model_past_two_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    model = models.external_data(tmp_path / "model.onnx")
    onnx.save(model, tmp_path / "model.onnx")
    with (tmp_path / "model.onnx.data").open("r+b") as file:
        file.truncate(2_200_000_000)  # sparse: takes no room
    given = tmp_path / "model.onnx"
    spec = SourceSpec(given, weights=None, inputs={}, outputs=None, base_dir=tmp_path, shapes={})
    with pytest.raises(Unsupported, match=r"model\.onnx: the model is too large") as caught:
        open_source(spec, tmp_path)
    assert "it takes 2.20 GB; more than 2.15 GB" in str(caught.value)
    assert "split the model" in caught.value.fix
