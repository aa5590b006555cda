"""Models of other quantizers in TensorRT's form: the rules hold, and the answers stay."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from exporters import _trt_activations as activations
from exporters._check import onnx_session, run_onnx
from exporters._onnx_cleanup import clean
from exporters._onnx_graph import normalise
from exporters._trt_normalise import normalised
from exporters._trt_rules import findings
from tests import models
from tests.exporters.test_trt_rules import Quantized

NETS = ("convnet", "depthwise", "unet", "hardswish_net", "mlp", "transformer_block")
OTHERS: dict[str, Mapping[str, Any]] = {
    "unsigned": {"ActivationSymmetric": True},
    "signed": {"ActivationSymmetric": True, "WeightSymmetric": True, "DedicatedQDQPair": True,
               "AddQDQPairToWeight": True, "QuantizeBias": False},
    "default": {},
}  # fmt: skip


def prepared(name: str) -> ModelProto:
    model, _ = normalise(models.ALL[name]())
    clean(model)
    return model


@functools.cache
def foreign(name: str, kind: str, folder: Path) -> tuple[ModelProto, ModelProto]:
    """A test model and what ONNX Runtime's own quantizer makes of it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Once(CalibrationDataReader):
        feeds = iter([models.feeds(prepared(name), 32, seed=1)])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    model = prepared(name)
    onnx.save(model, folder / "float.onnx")
    signed = QuantType.QInt8 if kind == "signed" else QuantType.QUInt8
    quantize_static(
        folder / "float.onnx", folder / f"{kind}.onnx", Once(), activation_type=signed,
        per_channel=kind != "default", extra_options=dict(OTHERS[kind]),
    )  # fmt: skip
    return model, onnx.load(folder / f"{kind}.onnx")


def answers(model: ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """What the pairs themselves say, and no engine's integer kernels."""
    return run_onnx(onnx_session(model.SerializeToString(), optimize=False), feeds)


def loss_db(wanted: ModelProto, first: ModelProto, second: ModelProto) -> float:
    """By how much the signal over noise falls from `first` to `second`."""
    feeds = models.feeds(wanted, 32, seed=2)
    want = answers(wanted, feeds)

    def noise(model: ModelProto) -> float:
        return sum(float(((want[k] - v) ** 2).sum()) for k, v in answers(model, feeds).items())

    return float(10 * np.log10(noise(second) / noise(first)))


def errors(model: ModelProto) -> set[str]:
    return {one.rule for one in findings(model) if one.level != "note"}


def copied(model: ModelProto) -> ModelProto:
    made = ModelProto()
    made.CopyFrom(model)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.mark.parametrize("kind", ["unsigned", "signed"])
@pytest.mark.parametrize("name", NETS)
def test_onnxruntimes_symmetric_models_keep_every_rule_and_their_answers(name, kind, folder):
    model, other = foreign(name, kind, folder)
    assert errors(other) or name in {"mlp", "transformer_block"}
    made, _ = normalised(copied(other))
    assert errors(made) == set()
    assert loss_db(model, other, made) < 0.5  # pairs taken out only help; grids stay


def test_an_unsigned_grid_is_read_with_the_scale_that_keeps_its_range(folder, monkeypatch):
    model, other = foreign("convnet", "default", folder)
    made, notes = normalised(copied(other))
    assert any("unsigned" in note for note in notes)
    assert loss_db(model, other, made) < 2.0  # half the levels of what a ReLU gives

    real = activations._widening
    monkeypatch.setattr(activations, "_widening", lambda *args: min(real(*args), 1.0))
    assert loss_db(model, other, normalised(copied(other))[0]) > 8.0


def test_a_relu_that_an_unsigned_grid_had_absorbed_comes_back(folder):
    _, other = foreign("convnet", "default", folder)
    assert "Relu" not in {node.op_type for node in other.graph.node}
    assert "Relu" in {node.op_type for node in normalised(copied(other))[0].graph.node}


def test_other_zero_points_are_left_for_the_checker_to_name(folder):
    _, other = foreign("mlp", "default", folder)
    found = [one for one in findings(normalised(copied(other))[0]) if one.level == "error"]
    assert {one.rule for one in found} == {"R03", "R04"} or {one.rule for one in found} == {"R03"}
    assert all("symmetrically" in one.fix or "signed" in one.fix for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["depthwise", "unet"])
def test_nncfs_models_keep_every_rule_and_their_answers(name):
    nncf = pytest.importorskip("nncf", reason="needs the openvino extra")
    model = prepared(name)
    data = [models.feeds(model, 1, seed=i) for i in range(16)]
    other = nncf.quantize(copied(model), nncf.Dataset(data), subset_size=16)
    assert "R04" in errors(other)
    made, _ = normalised(copied(other))
    assert errors(made) == set()
    assert loss_db(model, other, made) < 2.5


class Storage(Quantized):
    """Weights as this project's own passes store them."""

    def cast(self, name: str, values: Any, to: int) -> str:
        self.weights.append(
            helper.make_tensor(name, TensorProto.INT4, values.shape, values.ravel())
        )
        return self.op("Cast", name, name=f"{name}.cast", to=to)


def stored() -> ModelProto:
    net = Storage(0)
    values = net.rng.integers(-8, 8, (4, 4, 1, 1)).astype(np.int8)
    integers = net.cast("w", values, TensorProto.INT8)
    scale = net.constant("w.s", net.rng.uniform(0.01, 0.1, 4))
    weight = net.op("DequantizeLinear", integers, scale, name="w.dq", axis=0)
    x = net.op("Conv", net.pair("image", "x"), weight, name="conv")
    floats = net.cast("v", values, TensorProto.FLOAT)
    scales = net.constant("v.s", net.rng.uniform(0.01, 0.1, (4, 1, 1, 1)))
    floats = net.op("Mul", floats, scales, name="v.scaled")
    x = net.op("Conv", net.op("Tanh", x, name="tanh"), floats, name="float")
    blocks = net.constant("u.s", net.rng.uniform(0.01, 0.1, (4, 2, 1, 1)))
    net.weights.append(helper.make_tensor("u", TensorProto.INT4, (4, 4, 1, 1), values.ravel()))
    blocked = net.op("DequantizeLinear", "u", blocks, name="u.dq", axis=1, block_size=2)
    return net.done(net.op("Conv", x, blocked, name="blocked"))


def test_four_bit_storage_is_written_out_with_the_same_values():
    model = stored()
    made, _ = normalised(copied(model))
    feeds = models.feeds(model, 4)
    np.testing.assert_allclose(answers(made, feeds)["y"], answers(model, feeds)["y"], rtol=1e-5)
    kinds = {tensor.data_type for tensor in made.graph.initializer}
    assert kinds == {TensorProto.FLOAT, TensorProto.INT8}
    assert "Cast" not in {node.op_type for node in made.graph.node}


def test_a_batch_norm_behind_quantized_weights_goes_into_their_scales():
    net = Quantized(0)
    x = net.layer("image", "conv", bias=net.constant("bias", np.arange(4)))
    parts = [net.constant(n, v) for n, v in (("g", [1, -2, 3, 0.5]), ("b", [1, 2, 3, 4]),
                                             ("m", [0.1] * 4), ("v", [1, 2, 3, 4]))]  # fmt: skip
    model = net.done(net.op("BatchNormalization", x, *parts, name="bn"))
    made, _ = normalised(copied(model))
    assert "BatchNormalization" not in {node.op_type for node in made.graph.node}
    feeds = models.feeds(model, 4)
    want = answers(model, feeds)["y"]
    np.testing.assert_allclose(answers(made, feeds)["y"], want, rtol=1e-4, atol=1e-4)


def test_scales_of_one_value_become_scalars_and_those_per_channel_the_largest():
    net = Quantized(0)
    x = net.layer("image", "one", scale=[0.05], zero=[0])
    model = net.done(net.layer(x, "many", scale=[0.1, 0.2, 0.3, 0.4], zero=[0] * 4))
    made, notes = normalised(copied(model))
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in made.graph.initializer}
    found = [scales[n.input[1]] for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert [(s.ndim, float(s)) for s in found] == [
        (0, pytest.approx(0.05)),
        (0, pytest.approx(0.4)),
    ]
    assert any("per channel" in note for note in notes)


def test_an_old_operator_set_is_raised():
    model = models.convnet(opset=12)
    made, notes = normalised(normalise(model)[0])
    assert made.opset_import[0].version == 17
    assert notes[-1] == "operator set raised from 12 to 17"


@pytest.mark.parametrize(("name", "opset"), [("convnet", 20), ("transformer_block", 20)])
def test_the_operator_set_is_one_that_jetpack_6_documents(name, opset):
    model = prepared(name)
    made, _ = normalised(copied(model))
    assert made.opset_import[0].version == opset
    feeds = models.feeds(model, 4)
    for key, want in answers(model, feeds).items():
        np.testing.assert_array_equal(answers(made, feeds)[key], want)


def test_it_stays_where_a_later_one_computes_otherwise():
    net = Quantized(0)
    parts = [net.constant("s", np.ones(4)), net.constant("b", np.zeros(4))]
    x = net.op("GroupNormalization", "image", *parts, name="norm", num_groups=2)
    assert normalised(net.done(x))[0].opset_import[0].version == 21
