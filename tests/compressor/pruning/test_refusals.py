"""What pruning must not do to a module: each is detected and named, and nothing is written."""
# ruff: noqa: E402

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

from torch import nn

from compressor.modules import load_module
from compressor.passes import prune_channels
from compressor.passes.prune_channels import Options
from compressor.pruning import effects
from exporters.base import Context
from runtimes.errors import Unsupported, UsageError
from tests import small_modules as sm
from tests.step_env import make_env


class Tied(nn.Module):
    """Token embedding and head share their weights; between them a wide layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.wide, self.back = nn.Linear(16, 64), nn.Linear(64, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x) + self.back(self.wide(self.embed(x)).relu()))


class Square(nn.Module):
    """Two layers share one square matrix: a channel is a row here and a column there."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.b.weight = self.a.weight
        self.up, self.head = nn.Linear(16, 64), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.up(self.b(self.a(x).relu())).relu())


class Twice(nn.Module):
    """One layer called twice, and one called once."""

    def __init__(self):
        super().__init__()
        self.enter, self.same, self.norm = nn.Linear(8, 96), nn.Linear(96, 96), nn.LayerNorm(96)
        self.head = nn.Linear(96, 3)

    def forward(self, x):
        x = self.same(self.enter(x).relu()).relu()
        return self.head(self.norm(self.same(x)))


class Reshaped(nn.Module):
    """A size that stands in the code."""

    def __init__(self):
        super().__init__()
        self.conv, self.up, self.head = nn.Conv1d(4, 16, 3), nn.Linear(32, 64), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(self.up(self.conv(x).reshape(-1, 32)).relu())


class Memory(nn.Module):
    """State in and out: its width is the model's interface."""

    def __init__(self):
        super().__init__()
        self.rnn, self.up, self.head = nn.GRU(24, 24), nn.Linear(24, 64), nn.Linear(64, 3)

    def forward(self, state):
        out, state = self.rnn(state[None], state[None])
        return self.head(self.up(out[0]).relu()), state[0]


def run(factory, tmp_path, shape, dtype="float32", keep=None, prepare=None):
    torch.manual_seed(0)
    module = factory().eval()
    if prepare:
        prepare(module)
    source = sm.artifact(module, tmp_path / "source", shape, dtype)

    def build():
        made = factory()
        if prepare:
            prepare(made)
        return made

    env = make_env(tmp_path, reference=source, factory=build, context=Context(width_multiple=4))
    return env, lambda: prune_channels.run(source, Options(keep=keep or {"params": 0.7}), env)


def said(made):
    return {row["layer"]: row["reason"] for row in made.facts["left_alone"]}


def test_tied_embedding_and_head_shrink_together_and_stay_tied(tmp_path):
    env, start = run(Tied, tmp_path, ("n", 7), "int64", {"params": 0.5})
    smaller = load_module(start(), env.factory)
    assert smaller.head.weight is smaller.embed.weight
    assert smaller.embed.embedding_dim == smaller.head.in_features == smaller.wide.in_features < 16


def test_tied_weights_in_different_roles_are_named(tmp_path):
    env, start = run(Square, tmp_path, ("n", 16))
    made = start()
    assert "tied weights: a.weight and b.weight would lose different" in str(said(made))
    smaller = load_module(made, env.factory)
    assert smaller.a.weight is smaller.b.weight
    assert smaller.a.weight.shape == (16, 16)


def test_a_layer_called_twice_is_pruned_in_both_or_left_alone(tmp_path):
    env, start = run(Twice, tmp_path, ("n", 8), keep={"params": 0.6})
    smaller = load_module(start(), env.factory)
    same = smaller.same
    assert same.in_features == same.out_features == smaller.enter.out_features < 96


@pytest.mark.parametrize("layer", ["0", "2"])
def test_frozen_layers_are_named_and_keep_all_their_weights(layer, tmp_path):
    def freeze(module):
        module.get_submodule(layer).requires_grad_(False)

    env, start = run(sm.CASES["mlp"][0], tmp_path, ("n", 16), prepare=freeze, keep={"params": 0.85})
    if layer == "2":  # between the other two: nothing is left
        with pytest.raises(Unsupported, match=r"nothing can be pruned(.|\n)*frozen weights.*: 2"):
            start()
        assert not list(env.work.iterdir())
        return
    made = start()
    assert "frozen weights (requires_grad is False): 0" in said(made)["0"]
    smaller = load_module(made, env.factory)
    assert smaller[0].weight.shape == (64, 16)
    assert smaller[2].weight.shape[0] < 64


def test_shape_dependent_code_is_named_and_the_rest_is_pruned(tmp_path):
    env, start = run(Reshaped, tmp_path, ("n", 4, 4), keep={"params": 0.6})
    made = start()
    assert "conv" in said(made)
    assert load_module(made, env.factory).conv.out_channels == 16


def test_a_state_keeps_its_width(tmp_path):
    env, start = run(Memory, tmp_path, ("n", 24), keep={"params": 0.9})
    made = start()
    assert "model has that width" in said(made)["rnn"]
    assert load_module(made, env.factory).rnn.hidden_size == 24


def test_outputs_that_are_lost_or_change_are_refused():
    module, example = nn.Linear(4, 6), [torch.rand(2, 4)]
    with pytest.raises(Unsupported, match="outputs' shapes would change"):
        effects.check_outputs(module, nn.Linear(4, 5), example, "prune_channels")

    class Two(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(Unsupported, match="outputs' shapes would change"):
        effects.check_outputs(Two(4, 6), module, example, "prune_channels")


def test_nothing_removed_is_refused_and_nothing_written(tmp_path):
    env, start = run(sm.CASES["mlp"][0], tmp_path, ("n", 16), keep={"params": 0.985})
    with pytest.raises(UsageError, match="nothing was removed"):
        start()
    assert not list(env.work.iterdir())


def test_a_budget_between_two_steps_names_the_large_one(tmp_path):
    env, start = run(sm.CASES["split_heads"][0], tmp_path, ("n", 7, 24), keep={"params": 0.9})
    with pytest.raises(UsageError, match=r"between two steps(.|\n)*in qkv"):
        start()
    assert not list(env.work.iterdir())
    assert np.isfinite(sm.outputs(env.factory(), sm.feeds("split_heads", 2))[0]).all()
