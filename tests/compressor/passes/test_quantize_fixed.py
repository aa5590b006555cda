"""Fixed point: what torch trains is what the integers compute, and what cannot be is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporters.base import Context
from runtimes.errors import BuildFailed, UsageError
from runtimes.fixed import reference
from runtimes.fixed.spec import read_spec, zeros
from runtimes.types import Artifact
from tests import fixed_nets, models
from tests.contract.subjects import onnx_artifact
from tests.step_env import ArraySamples, make_env

torch = pytest.importorskip("torch", reason="fixed-point training needs the torch extra")

from compressor.passes import quantize_fixed  # noqa: E402
from compressor.passes.quantize_fixed import Options  # noqa: E402


def opened(tmp_path: Path, model) -> Artifact:
    from compressor.sources import SourceSpec, open_source

    given = models.save(model, tmp_path / "given.onnx")
    folder = tmp_path / "source"
    folder.mkdir()
    spec = SourceSpec(
        model=given, weights=None, inputs={}, outputs=None, base_dir=tmp_path, shapes={}
    )
    return open_source(spec, folder)


def samples(source: Artifact, count: int = 160, seed: int = 0) -> ArraySamples:
    rng = np.random.default_rng(seed)
    shape = (count, *source.inputs[0].shape[1:])
    return ArraySamples({"x": rng.random(shape).astype(np.float32)})


def made(tmp_path: Path, model, options: Options, role: str = "training"):
    source = opened(tmp_path, model)
    env = make_env(tmp_path, reference=source, data={role: samples(source)})
    return source, quantize_fixed.run(source, options, env)


def test_trained_student_and_integers_agree_to_the_last_bit(tmp_path: Path, monkeypatch) -> None:
    from compressor.fixed import fit

    kept = []
    build = fit.build
    monkeypatch.setattr(fit, "build", lambda s, *a: kept.append(s) or build(s, *a))
    options = Options(weight_bits=5, activation_bits=6, input_bits=5, zeros=0.4, steps=60, batch=16)
    source, artifact = made(tmp_path, fixed_nets.residual(), options)
    spec = read_spec(artifact.root)
    x = samples(source, 50, seed=1).arrays["x"]
    with torch.no_grad():  # double: no sum is rounded
        wanted = kept[0].double().eval()(torch.from_numpy(x).double())[0].numpy()
    got = reference.run(spec, {"x": x})["scores"]
    np.testing.assert_array_equal(got, wanted.astype(np.float32))
    ops = {layer.op for layer in spec.layers}
    assert ops == {"conv", "relu", "add", "max_pool", "avg_pool", "flatten", "dense"}
    none, every = zeros(spec)
    assert none / every >= 0.4
    assert artifact.facts["training"]["held_out"][-1] < artifact.facts["training"]["held_out"][0]


def test_rounded_only_and_close_with_many_bits(tmp_path: Path) -> None:
    options = Options(weight_bits=12, activation_bits=12, input_bits=12)
    source, artifact = made(tmp_path, fixed_nets.residual(), options, "calibration")
    x = samples(source, 50, seed=1).arrays["x"]
    wanted = models.run(fixed_nets.residual(), {"x": x})["scores"]
    got = reference.run(read_spec(artifact.root), {"x": x})["scores"]
    # 12 bits are 2^-12 of a range, a few layers one after another; formats cut off rare values.
    assert np.sqrt(np.square(got - wanted).mean()) < 0.01 * np.sqrt(np.square(wanted).mean())
    assert any("rounded without training" in note for note in artifact.facts["notes"])


def test_layers_that_cannot_be_built_are_named_all_at_once(tmp_path: Path) -> None:
    source = onnx_artifact(tmp_path / "net", "transformer_block")
    found = quantize_fixed.refusals(source, Options(), Context())
    named = {refusal.where.split("(")[1].rstrip(")") for refusal in found}
    assert {"Softmax", "LayerNormalization"} <= named
    assert all(refusal.why and refusal.fix for refusal in found)


def test_a_quantized_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    found = quantize_fixed.refusals(
        onnx_artifact(tmp_path / "net", "already_quantized"), Options(), Context()
    )
    assert [r.where for r in found] == ["model"]
    assert "float model" in found[0].fix


def test_zeros_of_the_source_stay(tmp_path: Path) -> None:
    model = fixed_nets.dense()
    weight = next(t for t in model.graph.initializer if t.name == "w0")
    from onnx import numpy_helper

    values = numpy_helper.to_array(weight).copy()
    values[:, ::2] = 0
    weight.CopyFrom(numpy_helper.from_array(values, "w0"))
    _, artifact = made(tmp_path, model, Options(steps=40, batch=16))
    whole = read_spec(artifact.root).weights["fc0.weight"]
    assert not whole[:, ::2].any()
    assert whole[:, 1::2].any()


def test_wrapping_over_calibration_data_is_an_error(tmp_path: Path) -> None:
    options = Options(weight_bits=6, activation_bits=2, overflow="WRAP")
    with pytest.raises(BuildFailed, match="overflow on calibration data"):
        made(tmp_path, fixed_nets.residual(), options, "calibration")


def test_no_data_and_wrong_options(tmp_path: Path) -> None:
    source = opened(tmp_path, fixed_nets.dense())
    with pytest.raises(UsageError, match="no data to find formats with"):
        quantize_fixed.run(source, Options(), make_env(tmp_path, reference=source))
    with pytest.raises(UsageError, match="weight_bits"):
        Options(weight_bits=1)
    with pytest.raises(UsageError, match="zeros"):
        replace(Options(), zeros=1.0)
