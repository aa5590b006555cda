"""Modules as artifacts: written, rebuilt after pruning, and each way in which that goes wrong."""
# ruff: noqa: E402

import json
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")

from torch import nn

from compressor.modules import (
    STRUCTURE,
    fingerprint,
    import_reference,
    load_module,
    reference_of,
    write_module,
)
from compressor.pruning import graph
from compressor.pruning.removal import remove
from runtimes.errors import BadArtifact, UsageError
from runtimes.types import TensorSpec
from tests import small_modules as sm


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "recipe"
    folder.mkdir()
    (folder / "net_code.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Linear(3, 2)\n"
        "def fails():\n    raise KeyError('gone')\n"
        "def number():\n    return 3\n"
        "WIDTH = 3\n"
    )
    return folder


@pytest.mark.parametrize("name", sorted(sm.CASES))
def test_same_outputs_after_a_round_trip(name, tmp_path):
    made = sm.source(name, tmp_path / "a")
    x = sm.feeds(name, 3)
    rebuilt = load_module(made, sm.CASES[name][0])
    for a, b in zip(sm.outputs(sm.build(name), x), sm.outputs(rebuilt, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # kernels differ by alignment


def test_same_module_same_bytes(tmp_path):
    assert (
        sm.source("residual", tmp_path / "a").digest()
        == sm.source("residual", tmp_path / "b").digest()
    )


def test_tied_weights_stay_tied_and_are_stored_once(tmp_path):
    made = write_module(tmp_path, Tied(), [TensorSpec("x", "int64", ("n",))], [], factory=None)
    rebuilt = load_module(made, Tied)
    assert rebuilt.head.weight is rebuilt.embed.weight
    assert (tmp_path / "weights.safetensors").stat().st_size < 12 * 8 * 4 + 200


def test_pruned_module_trains_and_is_pruned_again(tmp_path):
    module = sm.build("residual")
    example = [torch.from_numpy(sm.feeds("residual", 2))]
    remove(module, graph.find_groups(module, example), {"0": [1, 2, 3, 4]})
    made = sm.artifact(module, tmp_path, *sm.CASES["residual"][1:])
    rebuilt = load_module(made, sm.CASES["residual"][0])
    rebuilt.train()(*example).sum().backward()
    assert rebuilt[0].weight.grad.shape[0] == 12
    remove(rebuilt, graph.find_groups(rebuilt, example), {"0": [0, 1]})
    assert rebuilt.eval()(*example).shape == (2, 10)


def test_pruning_keeps_the_fingerprint_another_architecture_has_another():
    module = sm.build("residual")
    before = fingerprint(module)
    example = [torch.from_numpy(sm.feeds("residual", 2))]
    remove(module, graph.find_groups(module, example), {"0": [0, 1]})
    assert fingerprint(module) == before
    assert fingerprint(sm.build("unet")) != before


def test_another_factory_is_refused_naming_the_difference(tmp_path):
    made = sm.source("mlp", tmp_path)
    with pytest.raises(BadArtifact, match=r"builds another module(.|\n)*stored, not built"):
        load_module(made, lambda: nn.Sequential(nn.Linear(16, 10)))


def test_without_a_factory_it_says_what_to_pass(tmp_path):
    with pytest.raises(UsageError, match="pass factory="):
        load_module(sm.source("mlp", tmp_path))


@pytest.mark.parametrize(
    "sizes", [{"0": {"forward": 3}}, {"0": {"in_features": -1}}, {"0": {"in_features": "3"}}, 7]
)
def test_malformed_structure_is_refused(sizes, tmp_path):
    made = sm.source("mlp", tmp_path)
    path = tmp_path / STRUCTURE
    path.write_text(json.dumps({**json.loads(path.read_text()), "sizes": sizes}))
    with pytest.raises(BadArtifact):
        load_module(made, sm.CASES["mlp"][0])


def test_damaged_weights_are_refused(tmp_path):
    made = sm.source("mlp", tmp_path)
    made.path.write_bytes(made.path.read_bytes()[:100])
    with pytest.raises(BadArtifact, match=r"unreadable weights\.safetensors"):
        load_module(made, sm.CASES["mlp"][0])


def test_stored_factory_is_found_from_any_folder(recipe, tmp_path):
    build = import_reference("net_code:build", recipe)
    made = write_module(
        tmp_path / "m", build(), [TensorSpec("x", "float32", ("n", 3))], [],
        factory="net_code:build",
    )  # fmt: skip
    assert isinstance(load_module(made.root, search_path=recipe), nn.Linear)
    assert reference_of(made) == "net_code:build"
    assert str(recipe) not in sys.path


def test_recipes_may_use_the_same_module_name(recipe, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "net_code.py").write_text("def build():\n    return 'other'\n")
    assert import_reference("net_code:build", recipe)().in_features == 3
    assert import_reference("net_code:build", other)() == "other"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("net_code", "expected package.module:function"),
        ("net_cod:build", "did you mean net_code"),
        ("net_code:biuld", "did you mean build"),
        ("net_code:WIDTH", "not callable"),
    ],
)
def test_wrong_references(reference, says, recipe):
    with pytest.raises(UsageError, match=says):
        import_reference(reference, recipe)


def test_code_that_fails_on_import_is_named(recipe):
    (recipe / "broken.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(UsageError, match="needs nowhere_to_be_found, which is not installed"):
        import_reference("broken:build", recipe)


@pytest.mark.parametrize(("name", "says"), [("fails", "raised KeyError"), ("number", "got int")])
def test_factories_that_build_nothing(name, says, recipe, tmp_path):
    with pytest.raises(UsageError, match=says):
        load_module(sm.source("mlp", tmp_path / "a"), import_reference(f"net_code:{name}", recipe))


def test_building_leaves_the_random_state_alone(tmp_path):
    made = sm.source("mlp", tmp_path)
    before = torch.random.get_rng_state()
    load_module(made, sm.CASES["mlp"][0])
    assert torch.equal(before, torch.random.get_rng_state())
