"""Attention heads, embedding width and flattened pictures: what moves together, what is refused."""
# ruff: noqa: E402

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

from torch import nn

from compressor.modules import load_module
from compressor.passes import prune_channels
from compressor.passes.prune_channels import Options
from compressor.pruning import graph, select, tie
from compressor.pruning.removal import remove
from compressor.sources.torch_io import plain_attention
from exporters.base import Context
from tests import small_modules as sm
from tests.step_env import ArraySamples, make_env


def found(module, example):
    groups, refused = select.removable(module, example, graph.find_groups(module, example))
    return {g.name: g for g in groups}, {r.where: r.why for r in refused}


def pruned(module, factory, shape, dtype, feeds, tmp_path, keep, **options):
    source = sm.artifact(module, tmp_path / "source", shape, dtype)
    env = make_env(
        tmp_path, reference=source, data={"calibration": ArraySamples({"x": feeds})},
        factory=factory, context=Context(width_multiple=4),
    )  # fmt: skip
    made = prune_channels.run(source, Options(keep=keep, **options), env)
    return made, load_module(made, factory)


@pytest.mark.parametrize(
    ("name", "root", "repeats", "block"),
    [("heads", "v", 1, 8), ("split_heads", "qkv", 3, 8), ("mixed_heads", "qkv", 1, 24)],
)
def test_the_layout_of_heads_and_their_counts_are_found(name, root, repeats, block):
    module = sm.build(name)
    groups, _ = found(module, [torch.from_numpy(sm.feeds(name, 2))])
    group = groups[root]
    assert (group.repeats, group.block, group.units) == (repeats, block, 4)
    (inner,) = [m for m in group.members if m.side == "inner"]
    assert {a for a, _ in inner.sizes} == {"heads", "inner"}


@pytest.mark.parametrize("name", ["heads", "split_heads", "mixed_heads"])
def test_a_head_that_does_nothing_goes_first_and_nothing_changes(name, tmp_path):
    module = sm.build(name)
    with torch.no_grad():
        module.out.weight[:, 8:16] = 0  # the second head is not read
    x = sm.feeds(name)
    _, smaller = pruned(
        module, sm.CASES[name][0], *sm.CASES[name][1:], x, tmp_path, {"params": 0.76}
    )
    assert (smaller.heads, smaller.inner, smaller.size) == (3, 24, 8)
    np.testing.assert_allclose(sm.outputs(smaller, x)[0], sm.outputs(module, x)[0], atol=1e-5)


def test_heads_of_multihead_attention_go_with_the_embedding(tmp_path):
    """Dead channels and dead heads, in different places, cost nothing."""
    module = sm.build("encoder")
    layer, attention = module.layer, module.layer.self_attn
    with torch.no_grad():
        attention.out_proj.weight[:, 16:24] = 0  # the third head
        module.head.weight[:, ::4] = 0
        for weight in (layer.linear1.weight, attention.in_proj_weight):
            weight[:, ::4] = 0
        for norm in (layer.norm1, layer.norm2):
            norm.forward = lambda x: x
    example = [torch.from_numpy(sm.feeds("encoder", 4))]
    groups, _ = found(module, example)
    group = groups["layer.linear2"]
    assert [p.name for p in group.parts] == ["layer.linear2", "layer.self_attn"]
    scores = {
        "layer.linear2": (np.arange(32) % 4 > 0).astype(float),
        "layer.self_attn": np.repeat([1.0, 1.0, 0.0, 1.0], 8),
    }
    (group,), scores = tie.aligned([group], scores)
    assert scores["layer.linear2"].reshape(4, 8).sum(1)[0] == 0
    smaller = copy.deepcopy(module)
    remove(smaller, [group], {group.name: range(8)})
    attention = smaller.layer.self_attn
    assert (attention.num_heads, attention.embed_dim) == (3, 24)
    assert attention.in_proj_weight.shape == (72, 24)
    with torch.no_grad(), plain_attention():
        torch.testing.assert_close(smaller(*example), module(*example), atol=1e-5, rtol=1e-4)


class Picture(nn.Module):
    """Numbers to a picture, through a view whose channels an attribute holds."""

    def __init__(self):
        super().__init__()
        self.channels = 16
        self.start, self.up = nn.Linear(8, 16 * 9), nn.ConvTranspose2d(16, 1, 3)

    def forward(self, x):
        return self.up(self.start(x).view(-1, self.channels, 3, 3).relu())


def test_a_flattened_picture_loses_whole_channels(tmp_path):
    torch.manual_seed(0)
    module = Picture().eval()
    x = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    with torch.no_grad():
        module.up.weight[[1, 5, 6, 7]] = 0
    made, smaller = pruned(module, Picture, ("n", 8), "float32", x, tmp_path, {"params": 0.75})
    assert smaller.channels == 12
    assert made.facts["removed"]["start"] == [c * 9 + i for c in (1, 5, 6, 7) for i in range(9)]
    np.testing.assert_allclose(sm.outputs(smaller, x)[0], sm.outputs(module, x)[0], atol=1e-5)


class Constant(nn.Module):
    """Attention whose number of heads stands in the code."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 32) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(32, 3), nn.Linear(3, 64), nn.Linear(64, 2)

    def forward(self, x):
        q, k, v = (f(x).view(-1, 5, 4, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 5, 32)
        return self.down(self.up(self.out(y)).relu())


def test_constants_in_the_code_are_refused_by_name_and_the_rest_is_pruned():
    torch.manual_seed(0)
    groups, refused = found(Constant().eval(), [torch.rand(2, 5, 16)])
    assert "up" in groups
    assert "v" not in groups
    assert "no attribute around it holds their number" in refused["v"]


def test_pruned_heads_load_train_and_are_pruned_again(tmp_path):
    name, x = "split_heads", sm.feeds("split_heads")
    factory, shape, dtype = sm.CASES[name]
    made, smaller = pruned(sm.build(name), factory, shape, dtype, x, tmp_path, {"params": 0.76})
    smaller.train()(torch.from_numpy(x)).sum().backward()
    assert smaller.qkv.weight.grad.shape == (72, 24)
    env = make_env(tmp_path, reference=made, factory=factory, name="again")
    again = prune_channels.run(made, Options(keep={"params": 0.68}, multiple=1), env)
    assert load_module(again, factory).heads == 2
    assert len(again.facts["removed"]["qkv"]) == 48
