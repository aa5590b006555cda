"""Features: the same tensor in both modules, channel by channel, spread over the depth."""
# ruff: noqa: E402

import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

from compressor.modules import load_module
from compressor.passes import prune_channels
from compressor.recovery.features import Feature, choose_features, tapped
from compressor.recovery.losses import distance
from compressor.sources.torch_io import call
from runtimes.errors import UsageError
from tests import small_modules as sm
from tests.step_env import ArraySamples, make_env


def modules(name, tmp_path, keep=0.8):
    """(pruned, original, a batch, removed channels) of a case."""
    reference, factory = sm.source(name, tmp_path / "source"), sm.CASES[name][0]
    data = {"calibration": ArraySamples({"x": sm.feeds(name)})}
    env = make_env(tmp_path, reference=reference, data=data, factory=factory)
    options = prune_channels.Options(keep={"params": keep}, multiple=1)
    made = prune_channels.run(reference, options, env)
    batch = [torch.from_numpy(sm.feeds(name, 8))]
    student, original = (load_module(a, factory) for a in (made, reference))
    return student, original, batch, made.facts["removed"]


def values(module, batch, feature):
    with torch.no_grad(), tapped(module, [feature.name]) as found:
        call(module, batch)
    return found[feature.name]


def layer_before_which_nothing_was_pruned(module, removed):
    """The first layer that lost channels: its inputs are the original's."""
    return next(name for name, _ in module.named_modules() if name in removed)


@pytest.mark.parametrize("name", ["mlp", "dense", "grouped"])
def test_channels_left_are_matched_with_the_originals(name, tmp_path):
    student, original, batch, removed = modules(name, tmp_path)
    first = layer_before_which_nothing_was_pruned(original, removed)
    (feature,) = choose_features(student, original, batch, removed, (first,))
    assert feature.axis is not None
    wanted = feature.of_original(values(original, batch, feature))
    torch.testing.assert_close(values(student, batch, feature), wanted)


def test_a_block_has_the_channels_of_its_last_layer(tmp_path):
    student, original, batch, removed = modules("separable", tmp_path, keep=0.5)
    assert "expand.0" in removed
    (feature,) = choose_features(student, original, batch, removed, ("expand",))
    gone = set(removed["expand.0"])
    assert set(feature.kept) == set(range(64)) - gone


@pytest.mark.parametrize("name", ["residual", "unet", "attention", "encoder", "gru"])
def test_a_number_is_spread_and_leaves_out_the_output(name, tmp_path):
    student, original, batch, removed = modules(name, tmp_path)
    found = choose_features(student, original, batch, removed, 2)
    assert 1 <= len(found) <= 2
    outputs = call(student, batch)
    for feature in found:
        inner = values(student, batch, feature)
        aim = feature.of_original(values(original, batch, feature))
        assert aim.shape == inner.shape
        assert all(o.shape != inner.shape or not torch.equal(o, inner) for o in outputs)
        assert float(distance([inner], [aim])) >= 0


def test_none_and_auto_tap_nothing(tmp_path):
    student, original, batch, removed = modules("mlp", tmp_path)
    for wanted in ("none", "auto", 0):
        assert choose_features(student, original, batch, removed, wanted) == []


def test_a_wrong_name_is_told_with_the_nearest(tmp_path):
    student, original, batch, removed = modules("residual", tmp_path)
    near = next(n for n, m in student.named_modules() if n and not list(m.children()))
    with pytest.raises(UsageError, match="did you mean") as caught:
        choose_features(student, original, batch, removed, (near + "x",))
    assert caught.value.where == "recover.features"


def test_unknown_channels_are_no_feature(tmp_path):
    student, original, batch, removed = modules("mlp", tmp_path)
    first = layer_before_which_nothing_was_pruned(original, removed)
    with pytest.raises(UsageError, match="which channels are left there is not known"):
        choose_features(student, original, batch, {}, (first,))


def test_modules_that_run_twice_are_no_features():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.same, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.same(self.same(x)))

    module, batch = Twice(), [torch.randn(3, 4)]
    with pytest.raises(UsageError, match="no inner tensor"):
        choose_features(module, module, batch, {}, 1)


def test_what_was_not_pruned_is_taken_whole():
    tensor = torch.randn(2, 3)
    assert Feature("x").of_original(tensor) is tensor
