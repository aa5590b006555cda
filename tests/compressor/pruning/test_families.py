"""Every kind of network in the zoo: pruned to 60 % of its MACs, loaded, exported, pruned again."""
# ruff: noqa: E402

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

from compressor.modules import load_module, write_module
from compressor.passes import prune_channels
from compressor.passes.prune_channels import Options
from compressor.pruning import costs
from compressor.sources.torch_io import call
from examples.zoo import MODELS, folder, load
from exporters.base import Context
from runtimes.types import TensorSpec
from tests.step_env import ArraySamples, make_env

QUICK = {"rnn", "lstm", "gru", "gcn"}
FAMILIES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in MODELS
    if hasattr(load(name), "build")
]


def samples(about, count=16):
    """Random inputs; None for a stateful model, whose state is no sample's."""
    if about.state:
        return {}
    rng = np.random.default_rng(0)
    sizes = {**folder.SIZES, "batch": count}
    made = {}
    for name, (shape, dtype) in about.shapes().items():
        full = [sizes.get(d, d) for d in shape]
        whole = rng.integers(1, 20, full) if dtype == "int64" else rng.random(full, np.float32)
        made[name] = whole
    return {"calibration": ArraySamples(made)}


def prepared(name, tmp_path):
    torch.manual_seed(0)
    zoo = load(name)
    module, about = zoo.build().eval(), zoo.ABOUT
    specs = [TensorSpec(n, dtype, tuple(shape)) for n, (shape, dtype) in about.shapes().items()]
    outputs = [TensorSpec(n, "float32", ("batch",)) for n in about.outputs]
    source = write_module(
        tmp_path / "source", module, specs, outputs, factory=f"examples.zoo.{name}:build"
    )
    return module, about, source


def prune(source, about, keep, tmp_path, step, scope="auto"):
    env = make_env(
        tmp_path, reference=source, data=samples(about), name=step,
        context=Context(width_multiple=4, dims={"batch": 2, "steps": 12, "past": 3}),
    )  # fmt: skip
    return prune_channels.run(source, Options(keep={"macs": keep}, samples=16, scope=scope), env)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_pruned_loaded_exported_trained_and_pruned_again(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    module, about, source = prepared(name, tmp_path)
    wanted, example = 0.6, list(folder.examples(about))
    made = prune(source, about, wanted, tmp_path, "first")
    smaller = load_module(made)
    left = costs.count(smaller, example, "macs") / costs.count(module, example, "macs")
    assert left == pytest.approx(wanted, rel=0.02)
    with torch.no_grad():
        before, after = call(module, example), call(smaller, example)
        again = call(load_module(made.root), example)
    assert [o.shape for o in before] == [o.shape for o in after]
    assert all(torch.equal(a, b) for a, b in zip(after, again, strict=True))

    folder.export(smaller, about, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    feeds = {n: x.numpy() for n, x in zip(about.shapes(), example, strict=True)}
    for got, own in zip(session.run(None, feeds), after, strict=True):
        np.testing.assert_allclose(got, own.numpy(), rtol=1e-3, atol=1e-3)

    twice = prune(made, about, 0.9, tmp_path, "second")
    assert twice.facts["macs"] < made.facts["macs"]
    assert all(o.isfinite().all() for o in call(load_module(twice), example))

    trained = load_module(made).train()
    sum(o.float().square().mean() for o in call(trained, example)).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.parameters())


@pytest.mark.parametrize("name", ["bert", "gpt", "vit"])
def test_transformers_lose_heads_embedding_and_feed_forward_width(name, tmp_path):
    module, about, source = prepared(name, tmp_path)
    smaller = load_module(prune(source, about, 0.4, tmp_path, "first", "uniform"))
    before, after = module.layers[0], smaller.layers[0]
    width = after.norm1.normalized_shape[0]
    assert after.attention.heads < before.attention.heads
    assert after.attention.size == before.attention.size
    assert (
        width == after.attention.heads * after.attention.size == after.attention.query.in_features
    )
    assert all(layer.attention.heads == after.attention.heads for layer in smaller.layers)
    assert sum(layer.up.out_features for layer in smaller.layers) < 4 * before.up.out_features


def test_attention_over_a_memory_loses_states_and_memory_apart(tmp_path):
    """Queries and keys meet in a product; the memory's own channels are others."""
    _, about, source = prepared("seq2seq", tmp_path)
    smaller = load_module(prune(source, about, 0.5, tmp_path, "first", "uniform"))
    assert smaller.decoder.hidden_size == smaller.keys.out_features < 176
    assert 2 * smaller.encoder.hidden_size == smaller.keys.in_features < 352
    assert smaller.join.in_features == smaller.keys.in_features + smaller.keys.out_features
