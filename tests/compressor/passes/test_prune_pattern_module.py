"""`prune_pattern` on torch modules, and that training afterwards keeps the zeros."""
# ruff: noqa: E402

import copy
from functools import partial

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from torch import nn

from compressor.modules import load_module
from compressor.passes import factorize_layers, prune_pattern, recover, train_quantized
from compressor.passes.prune_pattern import Options
from compressor.quantization.onnx_index import index
from compressor.recovery import loop
from compressor.training.stored import find_stored
from exporters import to_onnx
from exporters._onnx_graph import load_model
from exporters.base import Context, Keep
from runtimes.errors import Unsupported, UsageError
from tests import small_modules as sm
from tests.contract import subjects
from tests.killing import resumed
from tests.step_env import ArraySamples, make_env

FAST = {"epochs": 4, "batch": 32, "precision": "float32"}


def env_of(case, tmp_path, reference, keep=(), data=200, **more):
    samples = {"calibration": ArraySamples({"x": sm.feeds(case, data)})} if data else {}
    samples["training"] = ArraySamples({"x": sm.feeds(case, 512)}) if data else None
    return make_env(
        tmp_path, reference=reference, data={k: v for k, v in samples.items() if v},
        factory=sm.CASES[case][0], context=Context(keep=Keep(channels=keep)), **more,
    )  # fmt: skip


def sparse(case, tmp_path, keep=(), data=200, **options):
    source = sm.source(case, tmp_path / "source")
    env = env_of(case, tmp_path, source, keep, data)
    made = prune_pattern.run(source, Options(**{"least": 1, **options}), env)
    return made, load_module(made, env.factory), env


def own(module: nn.Module, tmp_path, **options):
    """The step on a module of its own; the pruned module with its facts."""
    source = sm.artifact(module.eval(), tmp_path / "own", ("n", 16), "float32")
    samples = ArraySamples({"x": sm.feeds("mlp", 200)})
    factory = partial(copy.deepcopy, module)
    env = make_env(tmp_path, reference=source, data={"calibration": samples}, factory=factory)
    made = prune_pattern.run(source, Options(**{"least": 1, **options}), env)
    return load_module(made, factory), made.facts


def zeros(module, facts):
    named = dict(module.named_parameters())
    return {n: named[n].detach().numpy() == 0 for n in facts["pattern"]["weights"]}


def reasons(facts):
    return {row["layer"]: row["reason"] for row in facts["left_alone"]}


def noise(module, original, x):
    a, b = sm.outputs(module, x)[0], sm.outputs(original, x)[0]
    return float(np.square(a - b).mean() / b.var())


@pytest.mark.parametrize("name", sorted(sm.CASES))
def test_every_family_gets_its_zeros_and_runs(name, tmp_path):
    made, module, _ = sparse(name, tmp_path, sparsity=0.5)
    fact = made.facts["pattern"]
    gone = zeros(module, made.facts)
    assert sum(int(z.sum()) for z in gone.values()) == fact["zeros"]
    assert fact["zeros"] / fact["of"] == pytest.approx(0.5, abs=0.02)
    x = sm.feeds(name, 3)
    pairs = zip(sm.outputs(module, x), sm.outputs(sm.build(name), x), strict=True)
    assert all(a.shape == b.shape for a, b in pairs)


@pytest.mark.parametrize("name", ["residual", "mlp", "encoder", "separable"])
def test_two_of_four_input_channels_of_linear_and_convolution_layers(name, tmp_path):
    made, module, _ = sparse(name, tmp_path, pattern="2:4")
    gone = zeros(module, made.facts)
    assert gone
    for zero in gone.values():
        quads = np.moveaxis(zero, 1, -1).reshape(-1, 4)
        assert (quads.sum(axis=1) == 2).all()


@pytest.mark.parametrize("name", ["residual", "mlp", "unet", "grouped", "attention"])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_reconstruction_is_closer_than_magnitude_on_other_data(name, pattern, tmp_path):
    x, original = sm.feeds(name, 256, seed=9), sm.build(name)
    found = {}
    for kind in ("reconstruction", "magnitude"):
        _, module, _ = sparse(name, tmp_path / kind, pattern=pattern, saliency=kind)
        found[kind] = noise(module, original, x)
    assert found["reconstruction"] < 0.9 * found["magnitude"]


def test_a_layer_called_twice_is_fitted_on_both_calls(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.head(torch.relu(self.layer(torch.relu(self.layer(x)))))

    torch.manual_seed(0)
    module = Twice()
    x = sm.feeds("mlp", 300, seed=9)
    want = sm.outputs(module, x)[0]
    near = {}
    for kind in ("reconstruction", "magnitude"):
        torch.manual_seed(0)
        made, _ = own(Twice(), tmp_path / kind, saliency=kind, scope="uniform")
        near[kind] = float(np.square(sm.outputs(made, x)[0] - want).mean())
    assert near["reconstruction"] < near["magnitude"]


def test_tied_frozen_and_other_weights_are_left_alone_with_the_reason(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight
            self.frozen = nn.Linear(16, 16)
            self.frozen.weight.requires_grad_(False)
            self.table = nn.Parameter(torch.randn(16, 16))
            self.head = nn.Linear(16, 8)

        def forward(self, x):
            return self.head(self.frozen(self.b(self.a(x))) @ self.table)

    made, facts = own(Odd(), tmp_path)
    assert facts["pattern"]["weights"] == ["head.weight"]
    assert "tied" in reasons(facts)["a"]
    assert "frozen" in reasons(facts)["frozen"]
    assert "not the weight of" in reasons(facts)["table"]
    assert (made.a.weight != 0).all()


def test_kept_layers_and_typos(tmp_path):
    made, _, _ = sparse("mlp", tmp_path / "a", keep=("*2*",))
    assert "kept" in "".join(reasons(made.facts).values())
    with pytest.raises(UsageError, match="matches no module"):
        sparse("mlp", tmp_path / "b", keep=("nothing.*",))


def test_without_data_by_magnitude(tmp_path):
    made, module, _ = sparse("mlp", tmp_path, data=0, scope="uniform")
    assert "without data" in "\n".join(made.facts["notes"])
    original = dict(sm.build("mlp").named_parameters())
    for name, zero in zeros(module, made.facts).items():
        sizes = original[name].detach().abs().numpy()
        assert sizes[zero].max() <= sizes[~zero].min()


def test_the_fact_reaches_the_exported_graph(tmp_path):
    made, _, env = sparse("mlp", tmp_path, pattern="2:4")
    exported = to_onnx.run(made, to_onnx.Options(), make_env(
        tmp_path / "onnx", reference=made, factory=env.factory, context=Context(dims={"n": 2}),
        data={},
    ))  # fmt: skip
    assert exported.facts["pattern"]["kind"] == "2:4"


def test_layers_with_a_pattern_are_not_factorized(tmp_path):
    made, _, env = sparse("mlp", tmp_path)
    with pytest.raises(Unsupported, match="before prune_pattern"):
        factorize_layers.run(made, factorize_layers.Options(), env)


@pytest.mark.parametrize(("name", "pattern"), [("mlp", "2:4"), ("residual", "1x4"), ("gru", "1x1")])
def test_recovery_comes_closer_and_keeps_every_zero(name, pattern, tmp_path):
    made, module, env = sparse(name, tmp_path, pattern=pattern, saliency="magnitude")
    after = recover.run(made, recover.Options(**FAST), env_of(name, tmp_path / "r", env.reference))
    trained = load_module(after, env.factory)
    before, now = dict(module.named_parameters()), dict(trained.named_parameters())
    for weight, zero in zeros(module, made.facts).items():
        values = now[weight].detach().numpy()
        assert not values[zero].any()
        assert not np.signbit(values[zero]).any()
        assert (values != before[weight].detach().numpy())[~zero].any()
    assert after.facts["pattern"] == made.facts["pattern"]
    x, original = sm.feeds(name, 256, seed=9), sm.build(name)
    assert noise(trained, original, x) < noise(module, original, x)


def test_zeros_survive_a_kill(tmp_path, monkeypatch):
    made, module, env = sparse("mlp", tmp_path, pattern="2:4")
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    options, again = recover.Options(**FAST), env_of("mlp", tmp_path, env.reference, name="killed")
    after = resumed(monkeypatch, 21, lambda: recover.run(made, options, again))
    trained = dict(load_module(after, env.factory).named_parameters())
    for weight, zero in zeros(module, made.facts).items():
        assert not trained[weight].detach().numpy()[zero].any()


def test_training_in_integers_keeps_zeros(tmp_path):
    given = subjects.source(tmp_path / "source", "onnx", "convnet")
    context = subjects.context("train_quantized", "onnx")
    env = make_env(tmp_path, reference=given, data=subjects.data(given, 256), context=context)
    made = prune_pattern.run(given, Options(sparsity=0.6, least=1), env)
    options = train_quantized.Options(epochs=3, batch=16, weight_bits=8, lr=1e-2)
    trained = train_quantized.run(made, options, make_env(
        tmp_path / "t", reference=given, data=subjects.data(given, 256), context=context
    ))  # fmt: skip
    graph = index(load_model(trained.path))
    floats = {
        n: onnx.numpy_helper.to_array(t) for n, t in index(load_model(made.path)).weights.items()
    }
    shares = []
    for name in find_stored(graph)[0]:
        integers = onnx.numpy_helper.to_array(graph.weights[name]).astype(int)
        like = [w for w in floats.values() if w.shape == integers.shape and (w == 0).mean() > 0.3]
        if like:
            shares.append(min(float((integers[w == 0] != 0).mean()) for w in like))
    assert len(shares) >= 3
    assert shares == [0.0] * len(shares)
