"""`train_quantized`: what is trained ships, closer to the original, the same after a kill."""
# ruff: noqa: E402

from dataclasses import replace

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from compressor.passes import train_quantized
from compressor.passes.train_quantized import Options
from compressor.quantization.ledger import ledger
from compressor.recovery import loop
from compressor.training.graph import trainable, untrainable
from compressor.training.values import write_back
from exporters._check import onnx_session, run_onnx
from exporters._onnx_graph import load_model
from exporters._schemes import ONNXRUNTIME
from exporters.base import Keep
from runtimes.errors import Unsupported, UsageError
from tests import models
from tests.compressor.quantization.helpers import apply, executed, precisions, prepared, sqnr_db
from tests.contract import subjects
from tests.killing import resumed
from tests.step_env import ArraySamples, make_env

FAST = {"epochs": 4, "batch": 16, "weight_bits": 4, "share": 1.0}


def env_of(given, tmp_path, size=256, **more):
    data = subjects.data(given, size)
    more.setdefault("context", subjects.context("train_quantized", given.format))
    return make_env(tmp_path, reference=given, data=data, **more)


def torch_outputs(model, feeds):
    module = trainable(model, {}, False).eval()
    with torch.no_grad():
        return [o.numpy() for o in module(*(torch.from_numpy(feeds[n]) for n in module.inputs))]


@pytest.mark.parametrize("name", sorted(models.ALL))
def test_the_torch_graph_computes_what_the_file_does(name, tmp_path):
    """Float, INT8 and 4-bit forms: within float rounding of ONNX Runtime without fusion."""
    given = prepared(tmp_path, name)
    made = [given]
    try:
        made.append(apply(tmp_path, given, "quantize_static"))
        made.append(apply(tmp_path, made[-1], "quantize_weights"))
    except Unsupported:
        assert len(made) < 3
    for artifact in made:
        model = load_model(artifact.path)
        if untrainable(model):
            assert name == "if_subgraph"
            continue
        feeds = models.feeds(model, 4)
        pairs = zip(torch_outputs(model, feeds), models.run(model, feeds).values(), strict=True)
        for found, want in pairs:
            np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", ["convnet", "hardswish_net", "transformer_block", "gru"])
def test_writing_back_untrained_changes_nothing(name, tmp_path):
    made = apply(tmp_path, prepared(tmp_path, name), "quantize_static")
    made = apply(tmp_path, made, "quantize_weights", share=0.5)
    model = load_model(made.path)
    write_back(model, trainable(model, {}, False))
    feeds = models.feeds(model, 4)
    before, after = load_model(made.path), model
    for name_, want in models.run(before, feeds).items():
        found = models.run(after, feeds)[name_]
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", ["convnet", "depthwise", "hardswish_net", "transformer_block"])
def test_closer_than_rounding_alone_on_data_not_trained_on(name, tmp_path):
    given = prepared(tmp_path, name)
    rounded = apply(tmp_path, given, "quantize_static")
    rounded = apply(tmp_path, rounded, "quantize_weights", share=1.0)
    made = train_quantized.run(given, Options(**FAST), env_of(given, tmp_path))
    assert sqnr_db(given, made) > sqnr_db(given, rounded) + 2
    assert abs(made.size_bytes - rounded.size_bytes) < 64  # equal scales share a tensor
    assert executed(made) == executed(rounded)


def test_layers_run_in_integers_and_lie_in_4_bits(tmp_path):
    given = prepared(tmp_path, "convnet")
    made = train_quantized.run(given, Options(**FAST), env_of(given, tmp_path))
    ran = executed(made)
    assert (ran["QLinearConv"], ran["QLinearAdd"], ran["QGemm"]) == (4, 1, 1)
    kinds = {row.kind: row.size_bytes for row in ledger(made)}
    assert kinds["weights int4"] > 0.9 * sum(
        size for kind, size in kinds.items() if kind.startswith("weights")
    )


def test_the_file_scores_as_the_torch_model(tmp_path):
    """Class decisions differ on at most 0.2 of 100 samples: one step of an integer at a border."""
    given = prepared(tmp_path, "convnet")
    env = env_of(given, tmp_path)
    made = train_quantized.run(given, Options(**{**FAST, "epochs": 2}), env)
    feeds = {"image": models.fashion_like(2000, seed=5)["image"]}
    (found,) = torch_outputs(load_model(made.path), feeds)
    (shipped,) = run_onnx(onnx_session(made.path), feeds).values()
    assert (found.argmax(1) != shipped.argmax(1)).mean() <= 0.002
    facts = made.facts["training"]
    np.testing.assert_allclose(facts["written"], min(facts["held_out"]), rtol=0.1)


def test_openvino_runs_what_was_trained(tmp_path):
    pytest.importorskip("openvino", reason="needs the openvino extra")
    given = subjects.source(tmp_path / "in", "onnx", "convnet")
    context = subjects.context("x", "openvino")
    env = env_of(given, tmp_path, context=context)
    made = train_quantized.run(given, Options(**FAST), env)
    ir = apply(tmp_path, made, "to_openvino")
    assert precisions(ir)["int8"] >= 5
    assert sqnr_db(apply(tmp_path, made, "to_onnxruntime"), ir) > 25


def test_one_weight_scale_a_tensor(tmp_path):
    given = prepared(tmp_path, "depthwise")
    scheme = replace(ONNXRUNTIME, weight_per_channel=False)
    context = replace(subjects.context("x", given.format), scheme=scheme)
    options = Options(**{**FAST, "weight_bits": 8})
    made = train_quantized.run(given, options, env_of(given, tmp_path, context=context))
    scales = load_model(made.path).graph.initializer
    assert all(not t.dims for t in scales if t.name.startswith("ws"))
    losses = made.facts["training"]["held_out"]
    np.testing.assert_allclose(made.facts["training"]["written"], min(losses), rtol=0.2)


def test_a_model_that_other_steps_quantized_is_trained_as_it_is(tmp_path):
    given = prepared(tmp_path, "convnet")
    rounded = apply(tmp_path, given, "quantize_static", exclude=["block.conv1"])
    rounded = apply(tmp_path, rounded, "quantize_weights", share=0.9)
    env = env_of(given, tmp_path)
    made = train_quantized.run(rounded, Options(**{**FAST, "weight_bits": 8}), env)
    assert executed(made) == executed(rounded)
    assert sqnr_db(given, made) > sqnr_db(given, rounded)


def test_kept_layers_stay_float(tmp_path):
    given = prepared(tmp_path, "convnet")
    context = replace(subjects.context("x", given.format), keep=Keep(float=("block.conv2",)))
    made = train_quantized.run(given, Options(**FAST), env_of(given, tmp_path, context=context))
    rows = {row["layer"]: row["requested"] for row in made.facts["requested"]}
    assert rows["block.conv2"] == "float32"
    assert rows["block.conv1"] == "int8"


def test_without_calibration_data_the_training_data_serves(tmp_path):
    given = prepared(tmp_path, "mlp")
    env = env_of(given, tmp_path)
    del env.data["calibration"]
    assert train_quantized.run(given, Options(**FAST), env).facts["training"]["steps_done"]


@pytest.mark.parametrize("at", [1, 20, 50])
def test_a_killed_run_continues_to_the_same_bytes(at, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    given = prepared(tmp_path, "mlp")
    whole = train_quantized.run(given, Options(**FAST), env_of(given, tmp_path, name="whole"))
    again = resumed(
        monkeypatch,
        at,
        lambda: train_quantized.run(given, Options(**FAST), env_of(given, tmp_path, name="killed")),
    )
    assert again.digest() == whole.digest()


def test_minutes_become_steps(tmp_path):
    given = prepared(tmp_path, "mlp")
    options = Options(minutes=0.02, batch=16, weight_bits=4, share=1.0)
    made = train_quantized.run(given, options, env_of(given, tmp_path))
    assert made.facts["repeat"] == {"minutes": 0, "steps": made.facts["training"]["steps"]}


def test_training_that_does_not_help_says_so(tmp_path):
    given = prepared(tmp_path, "mlp")
    with pytest.raises(UsageError, match="did not bring"):
        train_quantized.run(given, Options(steps=1, lr=10.0), env_of(given, tmp_path))


def test_what_cannot_be_trained_is_refused_by_node(tmp_path):
    context = subjects.context("x", "onnx")
    (refusal,) = train_quantized.refusals(
        subjects.source(tmp_path / "if", "onnx", "if_subgraph"), Options(), context
    )
    assert refusal.where == "choice"
    assert "If" in refusal.why
    given = subjects.source(tmp_path / "state", "onnx", "streaming_gru")
    stateful = type(given)(**{**vars(given), "facts": {**given.facts, "state": {"h": "h2"}}})
    assert "recurrent state" in train_quantized.refusals(stateful, Options(), context)[0].why


@pytest.mark.parametrize(
    "options", [{"epochs": 1, "minutes": 1}, {"lr": 0}, {"share": 1.5}, {"batch": 0}]
)
def test_options_out_of_range(options):
    with pytest.raises(UsageError):
        Options(**options)


def test_a_module_without_an_onnx_reference_teaches(tmp_path):
    given = subjects.source(tmp_path / "m", "module")
    exported = subjects.run(tmp_path, "to_onnx", given, "export")
    env = subjects.env_of(tmp_path, "train_quantized", given, "train")
    env.context = subjects.context("train_quantized", "onnxruntime")
    made = train_quantized.run(exported, Options(**FAST), env)
    assert onnx.load(str(made.path)).graph.node
    assert made.format == "onnx"


def test_ragged_data_trains_one_sample_at_a_time(tmp_path):
    given = prepared(tmp_path, "gru")

    class Ragged(ArraySamples):
        ragged = True

        def feeds(self, indices):
            whole = super().feeds(indices)
            length = 3 + indices[0] % 4
            return {name: array[:, :length] for name, array in whole.items()}

    data = {r: Ragged(s.arrays) for r, s in subjects.data(given, 64).items()}
    env = env_of(given, tmp_path)
    env.data = data
    made = train_quantized.run(given, Options(steps=40, weight_bits=4, share=1.0), env)
    assert made.facts["training"]["written"] < made.facts["training"]["held_out"][0]
