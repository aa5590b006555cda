"""`prune_channels` on ONNX graphs: budgets, repair without labels, what is refused."""

import re

import numpy as np
import onnx
import pytest

from compressor.passes import prune_channels
from compressor.passes.prune_channels import Options
from compressor.pruning import onnx_pass
from compressor.sources import SourceSpec, open_source
from exporters._drop_in import drop_in_differences
from exporters.base import Context, Keep
from runtimes.errors import BuildFailed, Unsupported, UsageError
from tests import models
from tests.step_env import ArraySamples, make_env

DATA = models.fashion_like(200, seed=5)


def artifact(model, root):
    root.mkdir(parents=True)
    (root / "artifact").mkdir()
    given = models.save(model, root / "given.onnx")
    spec = SourceSpec(model=given, weights=None, inputs={}, outputs=None, base_dir=root, shapes={})
    return open_source(spec, root / "artifact")


def env_of(tmp_path, source, data=200, keep=(), arrays=None):
    arrays = arrays or {"image": DATA["image"]}
    few = {name: array[:data] for name, array in arrays.items()}
    context = Context(keep=Keep(channels=keep), width_multiple=2, dims={"batch": 2})
    samples = {"calibration": ArraySamples(few)} if data else {}
    return make_env(tmp_path, reference=source, data=samples, context=context)


def pruned(tmp_path, name="convnet", env=None, **options):
    source = env.reference if env else artifact(models.ALL[name](), tmp_path / "source")
    env = env or env_of(tmp_path, source)
    return source, prune_channels.run(source, Options(**options), env)


def outputs(made, feeds):
    return next(iter(models.run(onnx.load(made.path), feeds).values()))


def notes(made):
    return "\n".join(made.facts["notes"])


@pytest.mark.parametrize("measure", ["macs", "params", "bytes"])
def test_budget_is_met(measure, tmp_path):
    source, made = pruned(tmp_path, keep={measure: "60%"})
    if measure == "bytes":
        sizes = [
            sum(len(t.raw_data) for t in onnx.load(a.path).graph.initializer)
            for a in (source, made)
        ]
        assert sizes[1] / sizes[0] == pytest.approx(0.6, abs=0.04)  # biases for convolutions
    else:
        key = {"macs": "macs", "params": "parameters"}[measure]
        assert made.facts[key] / made.facts[f"{key}_before"] == pytest.approx(0.6, rel=0.05)


def test_macs_are_those_of_the_file(tmp_path):
    from exporters._onnx_macs import count_macs

    source, made = pruned(tmp_path, keep={"macs": "60%"})
    assert made.facts["macs_before"] == count_macs(source.path, {})
    assert made.facts["macs"] == count_macs(made.path, {})


@pytest.mark.parametrize(
    ("name", "gain"),
    [("convnet", 3), ("depthwise", 3), ("hardswish_net", 3), ("unet", 0.5), ("mlp", 0)],
)
def test_interface_stays_and_the_note_tells_what_repair_won(name, gain, tmp_path):
    source, made = pruned(tmp_path, name, keep={"macs": "70%"})
    assert drop_in_differences(source, made) == []
    assert "MACs" in notes(made)
    before, after = map(float, re.findall(r"(-?[\d.]+) dB (?:below|after)", notes(made)))
    assert after >= before + gain


def test_repair_is_closer_to_the_original_on_samples_nobody_saw(tmp_path):
    source = artifact(models.trained(models.convnet(), DATA), tmp_path / "source")
    fresh = {"image": models.fashion_like(60, seed=77)["image"]}
    want = outputs(source, fresh)
    errors = []
    for repair in (False, True):
        _, made = pruned(tmp_path, env=env_of(tmp_path, source), keep={"macs": 0.6}, repair=repair)
        errors.append(float(((outputs(made, fresh) - want) ** 2).mean()))
    assert errors[1] < 0.25 * errors[0]


def test_reconstruction_loses_less_than_the_control(tmp_path):
    source = artifact(models.trained(models.convnet(), DATA), tmp_path / "source")
    fresh = {"image": models.fashion_like(60, seed=77)["image"]}
    want = outputs(source, fresh)
    errors = {}
    for saliency in ("reconstruction", "random"):
        options = {"keep": {"macs": 0.5}, "saliency": saliency}
        _, made = pruned(tmp_path, env=env_of(tmp_path, source), **options)
        errors[saliency] = float(((outputs(made, fresh) - want) ** 2).mean())
    assert errors["reconstruction"] < 0.8 * errors["random"]


def test_channels_that_do_nothing_go_first_and_leave_no_trace(tmp_path):
    model = models.mlp()
    for tensor in model.graph.initializer:
        if tensor.name in {"fc1.weight", "fc1.bias"}:
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[:32] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    source = artifact(model, tmp_path / "source")
    many = {"image": models.fashion_like(400, seed=5)["image"]}  # or live ones look dependent
    env = env_of(tmp_path, source, data=400, keep=("fc2",), arrays=many)
    _, made = pruned(tmp_path, env=env, keep={"macs": "51%"})
    assert set(made.facts["removed"]["fc1"]) <= set(range(32))
    feeds = {"image": DATA["image"][:8]}
    np.testing.assert_allclose(outputs(made, feeds), outputs(source, feeds), atol=1e-4)


def test_hidden_units_of_an_mlp_block_in_a_transformer(tmp_path):
    source = artifact(models.transformer_block(), tmp_path / "source")
    tokens = {"tokens": np.random.default_rng(0).random((40, 6, 32), np.float32)}
    _, made = pruned(tmp_path, env=env_of(tmp_path, source, arrays=tokens), keep={"params": "70%"})
    assert list(made.facts["removed"]) == ["mlp1"]
    reasons = {row["layer"]: row["reason"] for row in made.facts["left_alone"]}
    assert "q.split: Reshape splits them" in reasons["q"]
    assert drop_in_differences(source, made) == []


def test_without_data_weights_decide_and_nothing_is_repaired(tmp_path):
    source = artifact(models.convnet(), tmp_path / "source")
    _, made = pruned(tmp_path, env=env_of(tmp_path, source, data=0), keep={"macs": "60%"})
    assert "saliency: l2 of the weights" in notes(made)
    assert "weights are the original's: fewer than 10 samples" in notes(made)
    with pytest.raises(UsageError, match="reconstruction needs 10 samples"):
        pruned(tmp_path, env=env_of(tmp_path, source, data=5), saliency="reconstruction")


@pytest.mark.parametrize("saliency", ["reconstruction", "l2", "random"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_every_saliency_and_scope_is_deterministic(saliency, scope, tmp_path):
    source = artifact(models.convnet(), tmp_path / "source")
    options = {"keep": {"macs": 0.6}, "saliency": saliency, "scope": scope, "samples": 30}
    first, second = (pruned(tmp_path, env=env_of(tmp_path, source), **options)[1] for _ in range(2))
    assert first.digest() == second.digest()


@pytest.mark.parametrize(("samples", "repaired"), [(60, True), (12, False), (3, False)])
def test_a_fixed_batch(samples, repaired, tmp_path):
    model = models.convnet()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    source = artifact(model, tmp_path / "source")
    _, made = pruned(tmp_path, env=env_of(tmp_path, source, data=samples), keep={"macs": 0.6})
    assert ("re-solved" in notes(made)) == repaired
    assert outputs(made, {"image": DATA["image"][:4]}).shape == (4, 10)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"saliency": "taylor"}, "taylor needs gradients"),
        ({"saliency": "hessian"}, "hessian needs gradients"),
    ],
)
def test_options_for_modules_are_refused(options, why, tmp_path):
    source = artifact(models.mlp(), tmp_path / "source")
    (refusal,) = prune_channels.refusals(source, Options(**options), Context())
    assert why in refusal.why
    with pytest.raises(Unsupported, match=why):
        pruned(tmp_path, env=env_of(tmp_path, source), **options)


def test_widths_are_multiples(tmp_path):
    _, made = pruned(tmp_path, "mlp", keep={"macs": "63%"}, multiple=8, samples=40)
    widths = {t.name: t.dims[0] for t in onnx.load(made.path).graph.initializer}
    assert widths["fc1.weight"] % 8 == widths["fc2.weight"] % 8 == 0
    assert widths["fc1.weight"] < 64
    assert "widths are multiples" not in notes(made)


def test_removed_channels_are_numbered_as_in_the_original(tmp_path):
    source = artifact(models.convnet(), tmp_path / "source")
    env = env_of(tmp_path, source)
    first = prune_channels.run(source, Options(keep={"macs": 0.7}, repair=False), env)
    again = prune_channels.run(
        first, Options(keep={"macs": 0.7}, repair=False), env_of(tmp_path / "again", first)
    )
    stays = [i for i in range(16) if i not in set(again.facts["removed"]["block.conv1"])]
    original, smaller = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(a.path).graph.initializer}
        for a in (source, again)
    )
    name = "block.conv1.bn.weight"
    np.testing.assert_array_equal(original[name][stays], smaller[name])


def test_no_bias_is_left_where_none_was_needed(tmp_path):
    source = artifact(models.convnet(), tmp_path / "source")
    _, made = pruned(tmp_path, env=env_of(tmp_path, source), keep={"macs": 0.6}, repair=False)
    names = [{t.name for t in onnx.load(a.path).graph.initializer} for a in (source, made)]
    assert names[0] == names[1]


def test_nothing_prunable_names_every_layer(tmp_path):
    source = artifact(models.mlp(), tmp_path / "source")
    with pytest.raises(Unsupported, match=r"nothing can be pruned\n  fc1: kept: fc1"):
        pruned(tmp_path, env=env_of(tmp_path, source, keep=("fc*",)))


def test_unreachable_budget_says_how_far_it_can_go(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be met(.|\n)*at the least"):
        pruned(tmp_path, keep={"macs": 0.02}, floor=0.5, saliency="l2")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"keep": {"params": 10**9}}, "removes nothing"),
        ({"saliency": "reconstruction"}, "needs 10 samples"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(options, why, tmp_path, monkeypatch):
    def worked(*_):
        raise AssertionError("layers were read first")

    monkeypatch.setattr(onnx_pass, "readers", worked)
    source = artifact(models.mlp(), tmp_path / "source")
    env = env_of(tmp_path, source, data=0 if "saliency" in options else 200)
    with pytest.raises(UsageError, match=why):
        pruned(tmp_path, env=env, **options)


def test_quantized_graphs_are_refused(tmp_path):
    source = artifact(models.already_quantized(), tmp_path / "source")
    (refusal,) = prune_channels.refusals(source, Options(), Context())
    assert "its weights have scales" in refusal.why
    assert (
        prune_channels.refusals(artifact(models.mlp(), tmp_path / "b"), Options(), Context()) == []
    )


def test_a_graph_that_would_change_otherwise_is_not_written(tmp_path, monkeypatch):
    """The check compares with the graph that does not read the channels: a broken cut shows."""
    monkeypatch.setattr(onnx_pass, "masked", lambda model, *_: model)
    with pytest.raises(BuildFailed, match="changed more than those channels"):
        pruned(tmp_path, keep={"macs": "60%"}, saliency="l2")
