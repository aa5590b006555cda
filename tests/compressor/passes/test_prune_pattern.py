"""`prune_pattern` on ONNX graphs: exact patterns, closer than by magnitude, honest if it cannot."""

import re

import numpy as np
import onnx
import pytest

from compressor.package import coded_size
from compressor.passes import prune_channels, prune_pattern
from compressor.passes.prune_pattern import Options
from compressor.pruning.onnx_linear import matrix
from compressor.quantization.onnx_index import index
from compressor.steps import load_step
from compressor.training.stored import find_stored
from exporters._drop_in import drop_in_differences
from exporters.base import Context, Keep
from runtimes.errors import Unsupported, UsageError
from tests import models
from tests.contract import subjects
from tests.step_env import ArraySamples, make_env


def env_of(tmp_path, source, data=200, keep=()):
    samples = {"calibration": subjects.data(source, data)["calibration"]} if data else {}
    context = Context(keep=Keep(channels=keep), dims={"batch": 2})
    return make_env(tmp_path, reference=source, data=samples, context=context)


def sparse(tmp_path, name="convnet", data=200, keep=(), **options):
    source = subjects.source(tmp_path / "source", "onnx", name)
    options = {"least": 1, **options}
    made = prune_pattern.run(source, Options(**options), env_of(tmp_path, source, data, keep))
    return source, made


def weights(artifact):
    model = onnx.load(artifact.path)
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def noise(source, made):
    """Error over power of the first output on data that no step has seen."""
    feeds = models.fashion_like(200, seed=77)
    given = {"image": feeds["image"]}
    want, got = (next(iter(models.run(onnx.load(a.path), given).values())) for a in (source, made))
    return float(np.square(want - got).sum() / np.square(want - want.mean(axis=0)).sum())


def notes(made):
    return "\n".join(made.facts["notes"])


@pytest.mark.parametrize("name", ["convnet", "mlp", "transformer_block", "unet", "depthwise"])
def test_two_of_four_input_channels_in_the_file(name, tmp_path):
    source, made = sparse(tmp_path, name, pattern="2:4")
    nodes = {n.input[1]: n for n in onnx.load(made.path).graph.node if len(n.input) > 1}
    found = weights(made)
    fact = made.facts["pattern"]
    assert fact["kind"] == "2:4"
    assert fact["weights"]
    for weight in fact["weights"]:
        values = matrix(nodes[weight], found[weight])
        spatial = found[weight].shape[2:] if nodes[weight].op_type == "Conv" else ()
        kernel = int(np.prod(spatial))
        channels = values.reshape(len(values), values.shape[1], -1, kernel).swapaxes(2, 3)
        assert ((channels.reshape(-1, 4) != 0).sum(axis=1) == 2).all()
    assert drop_in_differences(source, made) == []


@pytest.mark.parametrize("pattern", ["unstructured", "1x4", "4x1"])
def test_the_share_is_met_over_all_layers(pattern, tmp_path):
    _, made = sparse(tmp_path, pattern=pattern, sparsity="60%")
    fact = made.facts["pattern"]
    zeros = sum(int((weights(made)[n] == 0).sum()) for n in fact["weights"])
    assert fact["zeros"] == zeros
    assert zeros / fact["of"] == pytest.approx(0.6, abs=0.01)
    assert max(fact["shares"].values()) <= 0.9 + 1e-3  # the floor
    assert len(set(fact["shares"].values())) > 1


def test_uniform_gives_every_layer_its_share(tmp_path):
    _, made = sparse(tmp_path, sparsity=0.6, scope="uniform")
    assert made.facts["pattern"]["shares"]
    assert all(s == pytest.approx(0.6, abs=0.02) for s in made.facts["pattern"]["shares"].values())


@pytest.mark.parametrize("pattern", ["2:4", "unstructured", "1x4"])
def test_reconstruction_moves_the_outputs_least(pattern, tmp_path):
    found = {
        kind: noise(*sparse(tmp_path / kind, pattern=pattern, saliency=kind))
        for kind in ("reconstruction", "wanda", "magnitude")
    }
    assert found["reconstruction"] < 0.5 * min(found["wanda"], found["magnitude"])


def test_the_note_tells_what_re_solving_won_and_what_zeros_do_not_do(tmp_path):
    _, made = sparse(tmp_path, sparsity=0.6)
    said = re.search(r"error is (.*) dB below .* were, (.*) dB with them re-solved", notes(made))
    assert said, notes(made)
    assert float(said[2]) > float(said[1]) + 3
    assert "neither the model file smaller nor ONNX Runtime or OpenVINO faster" in notes(made)
    assert "of: package" in notes(made)


def test_the_package_shrinks_and_the_file_does_not(tmp_path):
    source, made = sparse(tmp_path, sparsity=0.8)
    assert coded_size(made) < 0.6 * coded_size(source)
    assert made.size_bytes == pytest.approx(source.size_bytes, rel=0.02)


def test_zeros_have_no_sign(tmp_path):
    _, made = sparse(tmp_path, saliency="magnitude")
    for name in made.facts["pattern"]["weights"]:
        values = weights(made)[name]
        assert not np.signbit(values[values == 0]).any()


def test_without_data_the_smallest_go_and_it_says_so(tmp_path):
    source, made = sparse(tmp_path, data=0, scope="uniform")
    assert "the smallest weights went, without data" in notes(made)
    before, after = weights(source), weights(made)
    for name in made.facts["pattern"]["weights"]:
        gone = after[name] == 0
        assert np.abs(before[name][gone]).max() <= np.abs(before[name][~gone]).min()
        assert (before[name][~gone] == after[name][~gone]).all()


def test_recurrent_kernels_get_zeros_but_no_quads(tmp_path):
    _, made = sparse(tmp_path / "a", "gru", sparsity=0.5)
    (rnn,) = [n for n in onnx.load(made.path).graph.node if n.op_type == "GRU"]
    assert set(rnn.input[1:3]) <= set(made.facts["pattern"]["weights"])
    assert all((weights(made)[n] == 0).mean() > 0.1 for n in rnn.input[1:3])
    _, quads = sparse(tmp_path / "b", "gru", pattern="2:4")
    reasons = {row["layer"]: row["reason"] for row in quads.facts["left_alone"]}
    assert "no sparse kernel" in reasons[rnn.name]


def test_layers_that_cannot_have_quads_are_named_with_the_reason(tmp_path):
    _, made = sparse(tmp_path, "depthwise", pattern="2:4")
    reasons = [row["reason"] for row in made.facts["left_alone"]]
    assert "1 input channels are no multiple of 4" in reasons
    assert "a grouped convolution has no sparse kernel" in reasons
    assert "was not timed, for want of one here" in notes(made)


def test_kept_and_small_layers_are_left_alone(tmp_path):
    source, made = sparse(tmp_path, keep=("stem*",), least=400)
    reasons = {row["layer"]: row["reason"] for row in made.facts["left_alone"]}
    kept = next(n for n in reasons if n.startswith("stem"))
    assert reasons[kept].startswith("kept")
    assert any("fewer than `least`, 400" in why for why in reasons.values())
    same = set(weights(source)) - set(made.facts["pattern"]["weights"])
    assert same


def test_a_keep_that_matches_nothing_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="matches no layer"):
        sparse(tmp_path, keep=("stemm",))


def test_no_further_zero_is_an_error(tmp_path):
    _, made = sparse(tmp_path, sparsity=0.6)
    with pytest.raises(UsageError, match="no further weight"):
        prune_pattern.run(made, Options(sparsity=0.3, least=1), env_of(tmp_path / "2", made))


def test_more_zeros_keep_those_there_were(tmp_path):
    _, first = sparse(tmp_path, sparsity=0.4)
    second = prune_pattern.run(first, Options(sparsity=0.7, least=1), env_of(tmp_path / "2", first))
    before, after = weights(first), weights(second)
    for name in first.facts["pattern"]["weights"]:
        assert not after[name][before[name] == 0].any()
    assert second.facts["pattern"]["zeros"] > first.facts["pattern"]["zeros"]


def test_nothing_that_fits_is_unsupported_with_every_reason(tmp_path):
    with pytest.raises(Unsupported, match="no weight can have the pattern 2:4") as caught:
        sparse(tmp_path, pattern="2:4", least=10**9)
    assert "fewer than `least`" in caught.value.text()


@pytest.mark.parametrize("saliency", ["wanda", "reconstruction"])
def test_saliency_that_needs_data_says_so(saliency, tmp_path):
    with pytest.raises(UsageError, match="needs 10 samples"):
        sparse(tmp_path, data=0, saliency=saliency)


def test_channels_are_not_removed_from_a_pattern(tmp_path):
    _, made = sparse(tmp_path, pattern="2:4")
    options = prune_channels.Options(keep={"macs": "60%"})
    with pytest.raises(Unsupported, match="before prune_pattern"):
        prune_channels.run(made, options, env_of(tmp_path / "2", made))


@pytest.mark.parametrize("name", ["reconstruct_weights", "quantize_weights"])
def test_rounding_to_four_bits_keeps_zeros(name, tmp_path):

    source, made = sparse(tmp_path, sparsity=0.6)
    export = load_step("to_onnxruntime")
    ready = export.run(made, export.Options(), env_of(tmp_path / "x", made))
    data = {"calibration": ArraySamples({"image": models.fashion_like(100, seed=3)["image"]})}
    env = make_env(
        tmp_path / "y", reference=source, data=data, context=subjects.context(name, ready.format)
    )
    step = load_step(name)
    graph = index(onnx.load(step.run(ready, step.Options(least=64), env).path))
    floats, seen = weights(ready), 0
    for key in find_stored(graph)[0]:
        integers = onnx.numpy_helper.to_array(graph.weights[key]).astype(int)
        like = [w for w in floats.values() if w.shape == integers.shape and (w == 0).mean() > 0.2]
        assert not like or any(not integers[w == 0].any() for w in like)
        seen += bool(like)
    assert seen >= 2
