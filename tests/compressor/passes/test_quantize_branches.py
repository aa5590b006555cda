"""INT8 under `If` and `Loop`: branches that the data takes, and what is said of the others."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from compressor.sources import SourceSpec, open_source
from compressor.steps import load_step, parse_options
from exporters._onnx_graph import all_nodes
from exporters.base import Keep, StepSpec
from runtimes.errors import Unsupported
from runtimes.types import Artifact
from tests import models
from tests.compressor.quantization.helpers import apply, engine
from tests.contract import subjects
from tests.net import Net
from tests.step_env import ArraySamples, make_env

BOTH = pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
IMAGES = models.fashion_like(48)["image"]
DATA = {"bright": IMAGES, "dark": IMAGES * 0.4}


def chosen(net: Net, name: str, limit: float, then, other) -> str:
    """An If over how bright the image is; both branches make a tensor of the same shape."""
    parts = []
    for make in (then, other):
        inner = Net(len(parts) + len(name))
        out = helper.make_tensor_value_info(make(inner), TensorProto.FLOAT, None)
        parts.append(
            helper.make_graph(inner.nodes, f"{name}{len(parts)}", [], [out], inner.weights)
        )
    peak = net.op("ReduceMax", "image", name=f"{name}.peak", keepdims=0)
    bright = net.op("Greater", peak, net.constant(f"{name}.limit", limit), name=f"{name}.bright")
    return net.op("If", bright, name=name, then_branch=parts[0], else_branch=parts[1])


def branches() -> onnx.ModelProto:
    """Between convolutions two branches with convolutions; one weight lies outside of both.

    In the dark branch a further If, whose own branches are a convolution and none.
    """
    net = Net(0)
    x = net.op("Relu", net.conv("image", "stem", (8, 1, 3, 3)), name="relu")
    shared = net.weight("shared", 8, 8, 3, 3)

    def on_shared(inner: Net, of: str, name: str) -> str:
        return inner.op("Conv", of, shared, name=name, pads=[1] * 4)

    def dark(inner: Net) -> str:
        y = on_shared(inner, x, "dark1")
        return chosen(
            inner, "inner", 0.2,
            lambda deep: on_shared(deep, y, "dim"),
            lambda deep: deep.op("Sigmoid", y, name="off"),
        )  # fmt: skip

    def bright(inner: Net) -> str:
        y = inner.op("Relu", inner.conv(x, "bright1", (8, 8, 3, 3)), name="bright.relu")
        return on_shared(inner, y, "bright2")

    x = chosen(net, "choice", 0.5, bright, dark)
    x = net.pool_head(net.conv(x, "last", (8, 8, 3, 3)), 8)
    return net.classifier(x, image=["batch", 1, 28, 28])


def looped() -> onnx.ModelProto:
    """A matrix product three times over in a Loop, and one behind it."""
    body = Net(1)
    y = body.op("Tanh", body.linear("state", "again", 16, 16), name="tanh")
    go = body.op("Identity", "go_in", name="go")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        body.nodes, "body",
        [info("i", TensorProto.INT64, []), info("go_in", TensorProto.BOOL, []),
         info("state", TensorProto.FLOAT, None)],
        [info(go, TensorProto.BOOL, []), info(y, TensorProto.FLOAT, None)], body.weights,
    )  # fmt: skip
    net = Net(0)
    x = net.gemm(net.op("Flatten", "image", name="flat"), "first", 784, 16)
    x = net.op("Loop", net.constant("three", 3, np.int64), net.constant("yes", True, np.bool_), x,
               name="loop", body=graph)  # fmt: skip
    return net.classifier(net.gemm(x, "head", 16, 10), image=["batch", 1, 28, 28])


def given(model: onnx.ModelProto, target: str, tmp_path) -> Artifact:
    if target == "openvino":
        pytest.importorskip("nncf", reason="needs the openvino extra")
    place = tmp_path / "given"
    (place / "source").mkdir(parents=True)
    spec = SourceSpec(model=models.save(model, place / "model.onnx"), base_dir=place)
    source = open_source(spec, place / "source")
    step = StepSpec(f"to_{target}")
    env = make_env(place, reference=source, context=subjects.context(step.name))
    return load_step(step.name).run(source, parse_options(step, "test"), env)


def quantized(source: Artifact, tmp_path, *kinds: str, **more) -> Artifact:
    data = {"calibration": ArraySamples({"image": np.concatenate([DATA[k] for k in kinds])})}
    return apply(tmp_path, source, "quantize_static", data=data, **more)


def asked(made: Artifact) -> Counter[str]:
    rows = made.facts["requested"]
    kinds = {"Conv", "Gemm", "MatMul", "Convolution"}
    return Counter(row["requested"] for row in rows if row["op"] in kinds)


def sqnr_db(want: Artifact, got: Artifact, kind: str) -> float:
    """Of one image at a time, so that each takes its own branch."""
    noise = signal = 0.0
    with engine(want).open_session(want) as a, engine(got).open_session(got) as b:
        for i in range(12):
            feeds = {"image": DATA[kind][i : i + 1]}
            x, y = (session.run(feeds)["logits"].astype(np.float64) for session in (a, b))
            noise, signal = noise + ((x - y) ** 2).sum(), signal + (x**2).sum()
    return float(10 * np.log10(signal / max(noise, 1e-30)))


@BOTH
def test_branches_that_the_data_takes_are_quantized(target, tmp_path):
    source = given(branches(), target, tmp_path)
    made = quantized(source, tmp_path, "bright", "dark")
    assert asked(made) == {"int8": 7}
    assert "all 7 layers with weights were asked to run in INT8" in made.facts["notes"]
    assert min(sqnr_db(source, made, kind) for kind in DATA) > 25


@BOTH
@pytest.mark.parametrize(("kind", "side", "left"), [("bright", "else", 2), ("dark", "then", 2)])
def test_a_branch_that_is_never_taken_stays_float_and_is_named(target, kind, side, left, tmp_path):
    source = given(branches(), target, tmp_path)
    made = quantized(source, tmp_path, kind)
    assert asked(made) == {"int8": 7 - left, "float32": left}
    said = [note for note in made.facts["notes"] if note.startswith("kept float:")]
    assert len(said) == 1
    assert f"no calibration sample takes the {side} branch of choice" in said[0]
    assert sqnr_db(source, made, kind) > 25


def test_onnxruntime_computes_in_integers_in_branches(tmp_path):
    made = quantized(given(branches(), "onnxruntime", tmp_path), tmp_path, "bright", "dark")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "executed.onnx")
    onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
    ran = Counter(node.op_type for node in all_nodes(onnx.load(tmp_path / "executed.onnx")))
    assert ran["QLinearConv"] == 6
    assert not {"Conv", "FusedConv", "Gemm"} & set(ran)


def test_openvino_computes_in_integers_in_branches(tmp_path):
    import openvino

    from compressor.quantization.openvino_branches import nested_ops
    from compressor.quantization.openvino_weights import WEIGHTED_TYPES, weight_bits

    made = quantized(given(branches(), "openvino", tmp_path), tmp_path, "bright", "dark")
    ops = list(nested_ops(openvino.Core().read_model(str(made.path))))
    assert [weight_bits(op) for op in ops if op.get_type_name() in WEIGHTED_TYPES] == [8] * 7


@BOTH
def test_a_net_that_lies_under_an_if_is_quantized(target, tmp_path):
    source = given(models.if_subgraph(), target, tmp_path)
    made = quantized(source, tmp_path, "bright", "dark")
    assert made.size_bytes < 0.36 * source.size_bytes
    assert min(sqnr_db(source, made, kind) for kind in DATA) > 25


@BOTH
def test_weights_of_a_branch_that_is_never_taken_can_be_stored_in_integers(target, tmp_path):
    source = given(models.if_subgraph(), target, tmp_path)
    made = quantized(source, tmp_path, "bright")
    assert made.size_bytes > 0.6 * source.size_bytes
    stored = apply(tmp_path, made, "quantize_weights", bits=8)
    assert stored.size_bytes < 0.36 * source.size_bytes
    assert min(sqnr_db(source, stored, kind) for kind in DATA) > 25


@BOTH
def test_a_layer_in_a_branch_can_be_kept_float(target, tmp_path):
    source = given(models.if_subgraph(), target, tmp_path)
    made = quantized(source, tmp_path, "bright", "dark", keep=Keep(float=("dark.fc",)))
    rows = {row["layer"]: row for row in made.facts["requested"]}
    assert rows["dark.fc"]["requested"] == "float32"
    assert "keep.float" in rows["dark.fc"]["reason"]
    assert rows["bright.fc"]["requested"] == "int8"
    with pytest.raises(Unsupported, match="no layer"):
        quantized(source, tmp_path, "bright", keep=Keep(float=("bright.*",)))


@BOTH
def test_what_the_data_takes_does_not_change_which_branch_is_taken(target, tmp_path):
    """A condition is computed in float: clipped to dark images, a bright one would look dark."""
    source = given(models.if_subgraph(), target, tmp_path)
    made = quantized(source, tmp_path, "dark")
    assert sqnr_db(source, made, "bright") > 100  # its own branch, untouched


@BOTH
def test_a_loop_is_left_alone_and_said(target, tmp_path):
    source = given(looped(), target, tmp_path)
    made = quantized(source, tmp_path, "bright")
    notes = " ".join(made.facts["notes"])
    assert "again" in notes
    assert "stands in the loop" in notes
    assert sqnr_db(source, made, "bright") > 25
