"""`factorize_layers`, one module per difficulty: budgets, what is left alone, what comes after."""
# ruff: noqa: E402

import json

import numpy as np
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

from torch import nn

from compressor.factorization import pairs
from compressor.modules import STRUCTURE, load_module, read_structure
from compressor.passes import factorize_layers, prune_channels, recover
from compressor.passes.factorize_layers import Options
from compressor.pruning import costs, norms
from exporters import to_onnx
from exporters.base import Context, Keep
from runtimes.errors import BadArtifact, Unsupported, UsageError
from runtimes.types import Artifact, TensorSpec
from tests import small_modules as sm
from tests.step_env import ArraySamples, StepEnv, make_env

# What each case can be brought to: the rest of it is too small, tied up or of another kind.
REACHABLE = {"residual": 0.5, "unet": 0.75, "mlp": 0.5, "attention": 0.6, "dense": 0.5} | {
    "separable": 0.75, "grouped": 0.95, "encoder": 0.75, "lstm": 0.9, "gru": 0.9,
}  # fmt: skip


def env_of(case: str, tmp_path, keep: tuple[str, ...] = (), data: bool = True, **more) -> StepEnv:
    source = more.pop("reference", None) or sm.source(case, tmp_path / "source")
    samples = ArraySamples({"x": sm.feeds(case)})
    context = Context(keep=Keep(channels=keep), width_multiple=more.pop("multiple", 1))
    return make_env(
        tmp_path, reference=source, data={"calibration": samples, "training": samples} if data
        else {}, factory=more.pop("factory", sm.CASES[case][0]), context=context, **more,
    )  # fmt: skip


def factorized(name: str, tmp_path, env=None, source=None, **options):
    env = env or env_of(name, tmp_path)
    made = factorize_layers.run(source or env.reference, Options(**options), env)
    return made, load_module(made, env.factory)


def custom(module: nn.Module, tmp_path, shape=("n", 16), **more):
    """An env for a module of its own, and that module."""
    source = sm.artifact(module.eval(), tmp_path / "own", shape, "float32")
    feeds = np.random.default_rng(0).standard_normal((64, *shape[1:])).astype("float32")
    return make_env(
        tmp_path, reference=source, data={"calibration": ArraySamples({"x": feeds})},
        factory=lambda: module, context=Context(width_multiple=1, **more),
    )  # fmt: skip


def reasons(made: Artifact) -> dict[str, str]:
    return {row["layer"]: row["reason"] for row in made.facts["left_alone"]}


def noise(module, original, x) -> float:
    a, b = sm.outputs(module, x)[0], sm.outputs(original, x)[0]
    return float(np.square(a - b).mean() / b.var())


@pytest.mark.parametrize("name", sorted(REACHABLE))
@pytest.mark.parametrize("measure", costs.MEASURES)
def test_budget_is_met_and_outputs_keep_their_shapes(name, measure, tmp_path):
    wanted = REACHABLE[name]
    made, smaller = factorized(name, tmp_path, keep={measure: wanted})
    x = sm.feeds(name, 3)
    example, original = [torch.from_numpy(x)], sm.build(name)
    left = costs.count(smaller, example, measure) / costs.count(original, example, measure)
    assert left == pytest.approx(wanted, rel=0.02)
    assert made.facts["factorized"] == pairs.ranks(smaller)
    before, after = sm.outputs(original, x), sm.outputs(smaller, x)
    assert [o.shape for o in before] == [o.shape for o in after]


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_only_what_gets_smaller_is_replaced(name, tmp_path):
    _, smaller = factorized(name, tmp_path, keep={"params": 0.8})
    original = sm.build(name)
    for layer in pairs.ranks(smaller):
        old, new = original.get_submodule(layer), smaller.get_submodule(layer)
        assert sum(p.numel() for p in new.parameters()) < sum(p.numel() for p in old.parameters())


def low_rank_inputs(rows, seed):
    """Sixteen inputs that follow from four, about a mean of their own."""
    mix = np.random.default_rng(5).standard_normal((4, 16))
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, 4)) @ mix + mix[0]).astype("float32")


def test_data_beats_the_weights_alone_on_correlated_inputs(tmp_path):
    module, x = sm.build("mlp"), low_rank_inputs(256, 3)
    errors = []
    for data in ({"calibration": ArraySamples({"x": low_rank_inputs(256, 1)})}, {}):
        env = env_of("mlp", tmp_path)
        env.data = data
        _, smaller = factorized("mlp", tmp_path, env, keep={"params": 0.6})
        errors.append(noise(smaller, module, x))
    assert errors[0] < 0.5 * errors[1]


def test_notes_tell_ranks_losses_and_what_they_come_from(tmp_path):
    made, smaller = factorized("mlp", tmp_path, keep={"params": 0.6})
    notes = "\n".join(made.facts["notes"])
    assert f"2 {pairs.ranks(smaller)['2']} of 64 (" in notes
    assert "by the layers' outputs on 64 samples" in notes
    plain, _ = factorized("mlp", tmp_path, env_of("mlp", tmp_path, data=False))
    assert "singular values alone (no training or calibration data)" in str(plain.facts["notes"])


def test_statistics_are_new_only_where_that_helps(tmp_path):
    module, x = sm.settled("residual"), sm.feeds("residual")
    source = sm.artifact(module, tmp_path / "settled", *sm.CASES["residual"][1:])
    env = env_of("residual", tmp_path, reference=source)
    env.data = {"calibration": ArraySamples({"x": sm.feeds("residual", 4)})}
    light, same = factorized("residual", tmp_path, env, keep={"macs": 0.98})
    assert any(
        "the original's (mean squared error on 1 others" in note for note in light.facts["notes"]
    )
    torch.testing.assert_close(same[1].running_mean, module[1].running_mean)
    again = env_of("residual", tmp_path, reference=source)
    heavy, other = factorized("residual", tmp_path, again, keep={"macs": 0.4})
    assert any("re-estimated on 51 samples" in note for note in heavy.facts["notes"])
    closer = noise(other, module, x)
    for mine, old in zip(norms.tracked(other), norms.tracked(module), strict=True):
        mine.running_mean, mine.running_var = old.running_mean, old.running_var
    assert closer < noise(other, module, x)


def test_what_is_stored_names_the_pairs_and_only_them(tmp_path):
    made, smaller = factorized("mlp", tmp_path, keep={"params": 0.6})
    assert read_structure(made.root)["factorized"] == pairs.ranks(smaller)
    assert "factorized" not in read_structure(sm.source("mlp", tmp_path / "plain").root)


@pytest.mark.parametrize("ranks", [{}, {"2": 10**9}, {"2": 0}, {"elsewhere": 3}, 7])
def test_a_structure_that_does_not_fit_the_weights_is_refused(ranks, tmp_path):
    made, _ = factorized("mlp", tmp_path, keep={"params": 0.6})
    path = made.root / STRUCTURE
    path.write_text(json.dumps({**json.loads(path.read_text()), "factorized": ranks}))
    with pytest.raises(BadArtifact):
        load_module(made, sm.CASES["mlp"][0])


def test_recovery_trains_the_pairs(tmp_path):
    env = env_of("mlp", tmp_path)
    made, smaller = factorized("mlp", tmp_path, env, keep={"params": 0.5})
    after = env_of("mlp", tmp_path, reference=env.reference, name="recover")
    after.data = {"training": ArraySamples({"x": sm.feeds("mlp", 512, seed=2)})}
    better = recover.run(made, recover.Options(epochs=12, batch=16, lr=3e-3), after)
    assert better.facts["factorized"] == made.facts["factorized"]
    x, original = sm.feeds("mlp"), sm.build("mlp")
    trained = load_module(better, env.factory)
    assert noise(trained, original, x) < 0.7 * noise(smaller, original, x)


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_pairs_are_pruned_and_factorized_again_as_one_layer(name, tmp_path):
    env = env_of(name, tmp_path)
    made, first = factorized(name, tmp_path, env, keep={"params": 0.75})
    pruned = prune_channels.run(
        made, prune_channels.Options(keep={"params": 0.8}), env_of(name, tmp_path, name="prune")
    )
    again, last = factorized(
        name, tmp_path, env_of(name, tmp_path, name="again"), source=pruned, keep={"params": 0.85}
    )
    assert again.facts["parameters"] < 0.55 * again_parameters(env)
    ranks = again.facts["factorized"]
    assert ranks == pairs.ranks(last)
    assert not any(".reduce" in layer or ".expand" in layer for layer in ranks)
    assert set(ranks) >= set(pairs.ranks(first))
    assert not set(ranks) & set(again.facts["removed"])
    assert sm.outputs(last, sm.feeds(name, 3))[0].shape == (3, 10)


def again_parameters(env: StepEnv) -> int:
    return int(env.reference.facts["parameters"])


def test_factorizing_what_was_pruned_keeps_the_original_numbers(tmp_path):
    env = env_of("mlp", tmp_path)
    pruned = prune_channels.run(env.reference, prune_channels.Options(keep={"params": 0.7}), env)
    made, _ = factorized(
        "mlp", tmp_path, env_of("mlp", tmp_path, name="again"), source=pruned, keep={"params": 0.8}
    )
    assert "2" in made.facts["factorized"]
    assert made.facts["removed"]["2.expand"] == pruned.facts["removed"]["2"]


@pytest.mark.parametrize(
    ("name", "exporter"),
    [("mlp", "dynamo"), ("residual", "torchscript"), ("encoder", "torchscript")],
)
def test_it_exports(name, exporter, tmp_path):
    env = env_of(name, tmp_path)
    made, smaller = factorized(name, tmp_path, env, keep={"params": REACHABLE[name]})
    after = env_of(name, tmp_path, reference=env.reference, name="export")
    exported = to_onnx.run(made, to_onnx.Options(exporter=exporter), after)
    assert exported.facts["factorized"] == made.facts["factorized"]
    x = sm.feeds(name, 3)
    (found,) = ort.InferenceSession(exported.path).run(None, {"x": x})
    np.testing.assert_allclose(found, sm.outputs(smaller, x)[0], atol=1e-4)


def test_what_is_left_alone_is_said(tmp_path):
    grouped, _ = factorized("grouped", tmp_path / "a", keep={"params": 0.95})
    said = reasons(grouped)
    assert "grouped convolution" in said["grouped"]
    assert said["up"] == "a ConvTranspose2d is left alone"
    assert said["mask"] == "too small: no pair costs less than 32 x 1"
    encoder, _ = factorized("encoder", tmp_path / "b", keep={"params": 0.8})
    assert "left alone" in reasons(encoder)["layer.self_attn.out_proj"]


class Odd(nn.Module):
    """A layer tied to another, one whose weights the forward reads, one it never calls."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.free = (nn.Linear(16, 16) for _ in range(3))
        self.read, self.idle, self.hooked = (nn.Linear(16, 16) for _ in range(3))
        self.b.weight = self.a.weight
        self.hooked.register_forward_hook(lambda *_: None)

    def forward(self, x):
        x = self.hooked(self.free(self.b(self.a(x))))
        return nn.functional.linear(self.read(x), self.read.weight)


def test_reasons_of_layers_that_cannot_be_replaced(tmp_path):
    torch.manual_seed(0)
    made = factorize_layers.run(
        (env := custom(Odd(), tmp_path)).reference, Options(keep={"params": 0.95}), env
    )
    said = reasons(made)
    assert said["a"] == "its weights are tied: b.weight"
    assert said["b"] == "its weights are tied: a.weight"
    assert "object has no attribute 'weight'" in said["read"]
    assert said["idle"] == "the forward never calls it"
    assert said["hooked"] == "hooks are attached to it"
    assert list(made.facts["factorized"]) == ["free"]


def test_a_module_that_asks_what_its_layers_are_is_found_out(tmp_path):
    class Asks(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * (1 if type(self[0]) is nn.Linear else 2)

    env = custom(Asks(nn.Linear(16, 32), nn.Linear(32, 16)), tmp_path)
    made = factorize_layers.run(env.reference, Options(keep={"params": 0.8}), env)
    assert "computes something else" in reasons(made)["0"]


def test_kept_layers_stay_whole(tmp_path):
    env = env_of("dense", tmp_path, keep=("c*",))
    made, smaller = factorized("dense", tmp_path, env, keep={"params": 0.85})
    assert isinstance(smaller.c, nn.Conv2d)
    assert reasons(made)["c"] == "kept: c"


def test_keep_that_matches_nothing_names_near_misses(tmp_path):
    with pytest.raises(UsageError, match=r"hed(.|\n)*did you mean head"):
        factorized("dense", tmp_path, env_of("dense", tmp_path, keep=("hed",)))


def test_nothing_to_factorize_says_why(tmp_path):
    with pytest.raises(Unsupported, match=r"nothing can be factorized\n  0: kept: 0"):
        factorized("mlp", tmp_path, env_of("mlp", tmp_path, keep=("*",)))
    env = custom(nn.Linear(16, 16), tmp_path)
    with pytest.raises(Unsupported, match="it is the whole module"):
        factorize_layers.run(env.reference, Options(), env)


def test_unreachable_budgets_say_how_far_it_can_go(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be met(.|\n)*at the least"):
        factorized("mlp", tmp_path, keep={"params": 0.3}, floor=0.5)


def test_steps_too_coarse_for_a_small_module_are_told_apart(tmp_path):
    env = custom(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), tmp_path)
    with pytest.raises(UsageError, match=r"cannot be met(.|\n)*no ranks that come within 2%"):
        factorize_layers.run(env.reference, Options(keep={"params": 0.56}), env)


def test_a_multiple_too_coarse_for_the_budget_is_halved_and_said(tmp_path):
    env = env_of("mlp", tmp_path, multiple=16)
    made, smaller = factorized("mlp", tmp_path, env, keep={"params": 0.6})
    (said,) = [note for note in made.facts["notes"] if "ranks are multiples of" in note]
    step = int(said.split()[4].rstrip(","))
    assert all(rank % step == 0 for rank in pairs.ranks(smaller).values())


@pytest.mark.parametrize("keep", [{"macs": 1}, {"params": "1G"}])
def test_keeping_everything_is_an_error(keep, tmp_path):
    with pytest.raises(UsageError, match="removes nothing"):
        factorized("mlp", tmp_path, keep=keep)


@pytest.mark.parametrize("wrong", [{"floor": 1}, {"multiple": -1}, {"samples": 0}, {"keep": {}}])
def test_options_out_of_range(wrong):
    with pytest.raises(UsageError):
        Options(**wrong)


def test_exported_models_are_refused_with_the_fix(tmp_path):
    source = sm.source("mlp", tmp_path)
    exported = Artifact(source.root, "exported", "m.pt2", source.inputs, source.outputs, {}, {})
    (refusal,) = factorize_layers.refusals(exported, Options(), Context())
    assert "give the torch module" in refusal.fix
    assert factorize_layers.refusals(source, Options(), Context()) == []


def test_inputs_by_keyword_are_seen(tmp_path):
    class Named(nn.Sequential):
        def forward(self, x):
            return self[1](input=self[0](input=x))

    env = custom(Named(nn.Linear(16, 64), nn.Linear(64, 16)), tmp_path)
    assert env.reference.inputs[0] == TensorSpec("x", "float32", ("n", 16))
    made = factorize_layers.run(env.reference, Options(keep={"params": 0.6}), env)
    assert len(made.facts["factorized"]) == 2


def test_what_the_outputs_hardly_see_goes_first(tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.loud, self.quiet = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.loud(x) + 1e-3 * self.quiet(x)

    torch.manual_seed(0)
    env = custom(Branches(), tmp_path, shape=("n", 64))
    made = factorize_layers.run(env.reference, Options(keep={"params": 0.75}, samples=64), env)
    assert pairs.ranks(load_module(made, env.factory)).keys() == {"quiet"}
