"""`prune_channels`, one module per difficulty: budgets, shapes, what is left alone or refused."""
# ruff: noqa: E402

import copy
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

from torch import nn

from compressor.modules import load_module
from compressor.passes import prune_channels
from compressor.passes.prune_channels import Options
from compressor.pruning import costs, norms
from exporters.base import Context, Keep
from runtimes.errors import Unsupported, UsageError
from runtimes.types import Artifact
from tests import small_modules as sm
from tests.step_env import ArraySamples, StepEnv, make_env


def env_of(
    name: str, tmp_path: Path, keep: tuple[str, ...] = (), data: bool = True, **more
) -> StepEnv:
    source = more.pop("reference", None) or sm.source(name, tmp_path / "source")
    samples = {"calibration": ArraySamples({"x": sm.feeds(name)})} if data else {}
    context = Context(keep=Keep(channels=keep), width_multiple=more.pop("multiple", 8))
    return make_env(
        tmp_path, reference=source, data=samples, factory=sm.CASES[name][0], context=context, **more
    )


def pruned(
    name: str, tmp_path: Path, env: StepEnv | None = None, **options
) -> tuple[Artifact, nn.Module]:
    env = env or env_of(name, tmp_path)
    made = prune_channels.run(env.reference, Options(**options), env)
    return made, load_module(made, env.factory)


REACHABLE = {"encoder": 0.6, "attention": 0.85, "heads": 0.75, "split_heads": 0.75,
             "mixed_heads": 0.75}  # fmt: skip


@pytest.mark.parametrize("name", sorted(sm.CASES))
@pytest.mark.parametrize("measure", costs.MEASURES)
def test_budget_is_met_and_outputs_keep_their_shapes(name, measure, tmp_path):
    wanted = REACHABLE.get(name, 0.5)
    _, smaller = pruned(name, tmp_path, keep={measure: wanted})
    x = sm.feeds(name, 3)
    example = [torch.from_numpy(x)]
    left = costs.count(smaller, example, measure) / costs.count(sm.build(name), example, measure)
    assert left == pytest.approx(wanted, rel=0.02)
    before, after = sm.outputs(sm.build(name), x), sm.outputs(smaller, x)
    assert [o.shape for o in before] == [o.shape for o in after]


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("attention", "qkv", "is invalid for input of size"),
        ("attention", "mlp.2", "input 0 of the model has that width"),
        ("heads", "out", "input 0 of the model has that width"),
        ("residual", "7", "outputs"),
    ],
)
def test_what_is_left_alone_is_said(name, layer, reason, tmp_path):
    made, _ = pruned(name, tmp_path, keep={"params": REACHABLE.get(name, 0.6)})
    said = {row["layer"]: row["reason"] for row in made.facts["left_alone"]}
    assert reason in said[layer]


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_recurrent_layer_loses_inputs_and_hidden_units(name, tmp_path):
    _, smaller = pruned(name, tmp_path, keep={"params": 0.5}, scope="uniform")
    assert smaller.rnn.hidden_size == smaller.after.in_features < 24
    assert smaller.rnn.input_size == smaller.before.out_features < 64


@pytest.mark.parametrize("name", ["stacked", "final"])
def test_stacked_layers_and_directions_lose_the_same_hidden_units(name, tmp_path):
    whole = sm.build(name)
    with torch.no_grad():  # units that nobody feeds stay at zero, whoever reads them
        for weight in whole.rnn.parameters():
            for gate in range(weight.shape[0] // 96):
                weight[gate * 96 + 20 : gate * 96 + 60] = 0
    source = sm.artifact(whole, tmp_path / "dead", *sm.CASES[name][1:])
    env = env_of(name, tmp_path / "dead", reference=source, multiple=1)
    _, smaller = pruned(name, tmp_path, env, keep={"params": 0.4})
    assert 56 <= smaller.rnn.hidden_size < 70
    assert smaller.rnn.weight_hh_l1.shape[1] == smaller.rnn.hidden_size
    x = sm.feeds(name, 5)
    np.testing.assert_allclose(sm.outputs(smaller, x)[0], sm.outputs(whole, x)[0], atol=1e-5)


@pytest.mark.parametrize("saliency", ["taylor", "hessian", "l2", "lamp", "random"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_every_saliency_and_scope_is_deterministic(saliency, scope, tmp_path):
    env = env_of("residual", tmp_path)
    first, _ = pruned("residual", tmp_path, env, keep={"macs": 0.6}, saliency=saliency, scope=scope)
    again = env_of("residual", tmp_path, reference=env.reference)
    second, _ = pruned(
        "residual", tmp_path, again, keep={"macs": 0.6}, saliency=saliency, scope=scope
    )
    assert first.digest() == second.digest()


@pytest.mark.parametrize("saliency", ["taylor", "hessian", "l2", "lamp"])
def test_channels_that_do_nothing_go_first(saliency, tmp_path):
    module = sm.build("mlp")
    with torch.no_grad():
        module[0].weight[:32], module[0].bias[:32], module[2].weight[:, :32] = 0, 0, 0
    source = sm.artifact(module, tmp_path / "dead", *sm.CASES["mlp"][1:])
    env = env_of("mlp", tmp_path, keep=("2",), reference=source)
    made, smaller = pruned("mlp", tmp_path, env, keep={"params": "56%"}, saliency=saliency)
    assert set(made.facts["removed"]["0"]) <= set(range(32))
    x = sm.feeds("mlp", 5)
    np.testing.assert_allclose(sm.outputs(smaller, x)[0], sm.outputs(module, x)[0], atol=1e-5)


def test_random_data_and_no_data_are_told_apart(tmp_path):
    made, _ = pruned(
        "residual", tmp_path, env_of("residual", tmp_path, data=False), keep={"macs": 0.6}
    )
    notes = "\n".join(made.facts["notes"])
    assert "saliency: l2 of the weights (no training or calibration data)" in notes
    assert "statistics are the original's: no data" in notes
    with pytest.raises(UsageError, match="taylor needs"):
        pruned("residual", tmp_path, env_of("residual", tmp_path, data=False), saliency="taylor")


def settled_env(tmp_path: Path, freeze: tuple[str, ...] = ()) -> StepEnv:
    """A residual net whose batch norms know the data, some of its layers frozen."""

    def factory() -> nn.Module:
        module = sm.settled("residual")
        for name in freeze:
            module.get_submodule(name).requires_grad_(False)
        return module

    source = sm.artifact(factory(), tmp_path / "settled", *sm.CASES["residual"][1:])
    env = env_of("residual", tmp_path / "settled", reference=source)
    env.factory = factory
    return env


def test_statistics_are_those_of_the_pruned_module_where_that_is_closer(tmp_path):
    env = settled_env(tmp_path)
    made, smaller = pruned("residual", tmp_path, env, keep={"macs": 0.5})
    assert "statistics re-estimated on 51 samples" in "\n".join(made.facts["notes"])
    seen = torch.from_numpy(sm.feeds("residual"))[[i for i in range(64) if i % 5]]
    torch.testing.assert_close(smaller[1].running_mean, smaller[0](seen).mean((0, 2, 3)).detach())


def test_statistics_that_lead_further_away_are_left_out(tmp_path):
    env, x = settled_env(tmp_path), sm.feeds("residual", 6)
    x[1:5] = 0  # what is re-estimated on; the others tell
    env.data = {"calibration": ArraySamples({"x": x})}
    made, smaller = pruned("residual", tmp_path, env, keep={"macs": 0.9}, multiple=1)
    assert "statistics are the original's (mean squared" in "\n".join(made.facts["notes"])
    stays = [i for i in range(16) if i not in made.facts["removed"].get("1", [])]
    torch.testing.assert_close(smaller[1].running_mean, env.factory()[1].running_mean[stays])


def test_frozen_norms_keep_their_statistics(tmp_path):
    env = settled_env(tmp_path, freeze=("0", "1"))
    _, smaller = pruned("residual", tmp_path, env, keep={"macs": 0.6})
    before = env.factory()[1]
    torch.testing.assert_close(smaller[1].running_mean, before.running_mean, rtol=0, atol=0)
    assert not norms.tracked(smaller).count(smaller[1])
    assert norms.tracked(smaller.requires_grad_(False)).count(smaller[1])  # all: says nothing


def test_widths_are_multiples_and_no_layer_falls_below_the_floor(tmp_path):
    _, smaller = pruned("dense", tmp_path, keep={"params": 0.6}, multiple=4, floor=0.5)
    assert (
        smaller.a.out_channels % 4 == smaller.b.out_channels % 4 == smaller.c.out_channels % 4 == 0
    )
    assert smaller.a.out_channels >= 8
    assert smaller.b.out_channels >= 12


def test_a_multiple_too_coarse_for_the_budget_is_halved_and_said(tmp_path):
    made, _ = pruned(
        "residual", tmp_path, env_of("residual", tmp_path, multiple=16), keep={"macs": 0.6}
    )
    assert any("widths are multiples of" in note for note in made.facts["notes"])


def test_grouped_convolutions_lose_the_same_in_each_group(tmp_path):
    made, smaller = pruned("grouped", tmp_path, keep={"macs": 0.5}, scope="uniform")
    assert smaller.grouped.groups == 4
    blocks = [sum(i // 16 == b for i in made.facts["removed"]["grouped"]) for b in range(4)]
    assert len(set(blocks)) == 1


def test_kept_layers_keep_all_their_channels(tmp_path):
    env = env_of("dense", tmp_path, keep=("b*",))
    made, smaller = pruned("dense", tmp_path, env, keep={"params": 0.8})
    assert smaller.b.out_channels == 24
    assert "b" not in made.facts["removed"]


def test_keep_that_matches_nothing_names_near_misses(tmp_path):
    with pytest.raises(UsageError, match=r"hed(.|\n)*did you mean head"):
        pruned("dense", tmp_path, env_of("dense", tmp_path, keep=("hed",)))


def test_nothing_prunable_says_why(tmp_path):
    env = env_of("mlp", tmp_path, keep=("*",))
    with pytest.raises(Unsupported, match=r"nothing can be pruned\n  0: kept"):
        pruned("mlp", tmp_path, env)


def test_unreachable_budget_says_how_far_it_can_go(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be met(.|\n)*at the least"):
        pruned("mlp", tmp_path, keep={"params": 0.05}, floor=0.5)


@pytest.mark.parametrize(
    "keep",
    [
        {},
        {"macs": 0.5, "params": 0.5},
        {"flops": 0.5},
        {"macs": "many"},
        {"macs": 0},
        {"macs": "1.2.3%"},
    ],
)
def test_keep_must_be_one_amount_of_one_measure(keep):
    with pytest.raises(UsageError, match="keep"):
        Options(keep=keep)


@pytest.mark.parametrize("keep", [{"macs": 1}, {"macs": "100%"}, {"params": "1G"}])
def test_keeping_everything_is_an_error(keep, tmp_path):
    with pytest.raises(UsageError, match="removes nothing"):
        pruned("mlp", tmp_path, keep=keep)


def test_absolute_budgets(tmp_path):
    made, _ = pruned("mlp", tmp_path, keep={"params": "3k"})
    assert made.facts["parameters"] == pytest.approx(3000, rel=0.02)
    assert made.facts["parameters_before"] == 5898


def test_exported_models_are_refused_with_the_fix(tmp_path):
    source = sm.source("mlp", tmp_path)
    exported = Artifact(source.root, "exported", "m.pt2", source.inputs, source.outputs, {}, {})
    (refusal,) = prune_channels.refusals(exported, Options(), Context())
    assert "give the torch module" in refusal.fix
    assert prune_channels.refusals(source, Options(), Context()) == []


@pytest.mark.parametrize(
    ("options", "target", "why"),
    [
        ({"saliency": "reconstruction"}, None, "is for ONNX graphs"),
        ({"keep": {"latency": "50%"}}, None, "a shared list has none"),
        ({"keep": {"latency": "50%"}}, "openvino", ""),
        ({"keep": {"latency": "50%"}, "on": "openvino"}, None, ""),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_run(options, target, why, tmp_path):
    source = sm.source("mlp", tmp_path)
    found = prune_channels.refusals(source, Options(**options), Context(target=target))
    assert len(found) == bool(why)
    assert all(why in refusal.why and refusal.fix for refusal in found)


def test_removed_channels_are_numbered_as_in_the_original(tmp_path):
    env = env_of("mlp", tmp_path)
    first = prune_channels.run(env.reference, Options(keep={"params": 0.6}), env)
    again = prune_channels.run(
        first, Options(keep={"params": 0.6}), env_of("mlp", tmp_path, reference=env.reference)
    )
    smaller, original = load_module(again, env.factory), sm.build("mlp")
    stays = [i for i in range(64) if i not in set(again.facts["removed"]["0"])]
    torch.testing.assert_close(smaller[0].weight, original[0].weight[stays])


def test_the_source_is_never_written_to(tmp_path):
    env = env_of("residual", tmp_path)
    before = copy.deepcopy(env.reference.files)
    pruned("residual", tmp_path, env, keep={"macs": 0.6})
    env.reference.verify()
    assert Artifact.load(env.reference.root).files == before
