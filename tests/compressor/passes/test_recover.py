"""`recover`: closer to the original without labels, the same after a kill, honest when it fails."""
# ruff: noqa: E402

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

from compressor.modules import load_module
from compressor.passes import prune_channels, recover
from compressor.passes.recover import Options
from compressor.recovery import loop, teacher
from compressor.recovery.features import choose_features, tapped
from compressor.recovery.losses import distance
from compressor.sources.torch_io import call
from exporters.base import Context
from runtimes.errors import BuildFailed, UsageError
from runtimes.types import Artifact
from tests import small_modules as sm
from tests.killing import resumed
from tests.step_env import ArraySamples, make_env

FAST = {"epochs": 4, "batch": 32, "precision": "float32"}


def pruned(name, tmp_path):
    reference = sm.artifact(sm.settled(name), tmp_path / "source", *sm.CASES[name][1:])
    data = {"calibration": ArraySamples({"x": sm.feeds(name)})}
    env = make_env(
        tmp_path, reference=reference, data=data, factory=sm.CASES[name][0], name="prune"
    )
    options = prune_channels.Options(keep={"params": 0.8}, multiple=1)
    return reference, prune_channels.run(reference, options, env)


def env_of(case, tmp_path, reference, samples=512, labels=None, **more):
    data = {"training": ArraySamples({"x": sm.feeds(case, samples)}, labels)}
    return make_env(tmp_path, reference=reference, data=data, factory=sm.CASES[case][0], **more)


def error(module, original, x):
    pairs = zip(sm.outputs(module, x), sm.outputs(original, x), strict=True)
    return sum(float(((a - b) ** 2).mean() / b.var()) for a, b in pairs)


@pytest.mark.parametrize("name", ["mlp", "residual", "grouped", "encoder", "gru"])
def test_outputs_come_closer_on_data_not_trained_on(name, tmp_path):
    reference, source = pruned(name, tmp_path)
    made = recover.run(source, Options(**FAST), env_of(name, tmp_path, reference))
    x, factory = sm.feeds(name, 256, seed=9), sm.CASES[name][0]
    original = sm.settled(name)
    before = error(load_module(source, factory), original, x)
    assert error(load_module(made, factory), original, x) < 0.8 * before
    assert made.facts["removed"] == source.facts["removed"]


@pytest.mark.parametrize("name", ["residual", "encoder", "gru"])
def test_half_precision_comes_closer_too(name, tmp_path):
    reference, source = pruned(name, tmp_path)
    options = Options(epochs=4, batch=32, precision="bfloat16", features=1)
    made = recover.run(source, options, env_of(name, tmp_path, reference))
    x, factory = sm.feeds(name, 256, seed=9), sm.CASES[name][0]
    before = error(load_module(source, factory), sm.settled(name), x)
    assert error(load_module(made, factory), sm.settled(name), x) < 0.8 * before
    assert made.facts["recover"]["precision"] == "bfloat16"
    assert all(p.dtype == torch.float32 for p in load_module(made, factory).parameters())


@pytest.mark.parametrize(
    ("flags", "half"), [((), False), (("avx512_bf16",), True), (("amx_tile",), True)]
)
def test_auto_is_half_where_the_processor_multiplies_it(flags, half, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for flag in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{flag}_supported", lambda f=flag: f in flags)
    assert recover._bfloat16("auto") == half
    assert recover._bfloat16("bfloat16")
    assert not recover._bfloat16("float32")


def test_labels_change_nothing_and_chosen_classes_come_closer(tmp_path):
    reference, source = pruned("mlp", tmp_path)
    labels = list(range(10)) * 60
    env = env_of("mlp", tmp_path, reference, samples=600, labels=labels)
    made = recover.run(source, Options(**FAST), env)
    blind = env_of("mlp", tmp_path, reference, samples=600, name="blind")
    assert recover.run(source, Options(**FAST), blind).digest() == made.digest()
    x = sm.feeds("mlp", 400, seed=9)
    choose = [
        sm.outputs(load_module(a, sm.CASES["mlp"][0]), x)[0].argmax(1) for a in (source, made)
    ]
    truth = sm.outputs(sm.build("mlp"), x)[0].argmax(1)
    assert (choose[1] == truth).mean() > (choose[0] == truth).mean()


def test_scores_are_aimed_at_where_they_are_asked_for(tmp_path):
    reference, source = pruned("mlp", tmp_path)
    labelled = env_of("mlp", tmp_path, reference, samples=600, labels=list(range(10)) * 60)
    blind = env_of("mlp", tmp_path, reference, samples=600, name="blind")
    made = recover.run(source, Options(**FAST, aim="scores"), labelled)
    assert "divergence from its scores" in made.facts["notes"][-1]
    assert recover.run(source, Options(**FAST, aim="scores"), blind).digest() == made.digest()


@pytest.mark.parametrize(
    ("aim", "labels", "found"),
    [
        ("scores", (4, 6), (1, -1)), ("scores", (4,), (0, 1)), ("scores", None, (0, 1)),
        ("outputs", (4, 6), None),
    ],
)  # fmt: skip
def test_scores_are_found_by_the_labels_or_by_their_shape(aim, labels, found):
    source = SimpleNamespace(outputs=[SimpleNamespace(name=n) for n in ("class", "words")])
    given = SimpleNamespace(labels=None if labels is None else np.ones(labels, np.int64))
    outputs = [torch.zeros(4, 3), torch.zeros(4, 6, 9)]
    assert recover._scores(source, Options(aim=aim), given, outputs) == found


def test_same_run_same_bytes(tmp_path):
    reference, source = pruned("residual", tmp_path)
    digests = {
        recover.run(
            source, Options(**FAST), env_of("residual", tmp_path, reference, name=n)
        ).digest()
        for n in ("a", "b")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("at", [1, 7, 20])
def test_a_killed_run_continues_to_the_same_bytes(at, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    reference, source = pruned("residual", tmp_path)
    whole = recover.run(
        source, Options(**FAST), env_of("residual", tmp_path, reference, name="whole")
    )
    again = resumed(
        monkeypatch,
        at,
        lambda: recover.run(
            source, Options(**FAST), env_of("residual", tmp_path, reference, name="killed")
        ),
    )
    assert again.digest() == whole.digest()


def test_the_original_runs_once_on_every_sample(tmp_path, monkeypatch):
    reference, source = pruned("mlp", tmp_path)
    seen, run = [], teacher._run
    monkeypatch.setattr(teacher, "_run", lambda m, b, h: seen.append(len(b[0])) or run(m, b, h))
    recover.run(source, Options(**FAST), env_of("mlp", tmp_path, reference))
    assert sum(seen) == 512 + 1  # one to learn the shapes


def test_a_killed_run_asks_for_no_output_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    reference, source = pruned("mlp", tmp_path)
    seen, run = [], teacher._run
    monkeypatch.setattr(teacher, "_run", lambda m, b, h: seen.append(len(b[0])) or run(m, b, h))
    resumed(
        monkeypatch,
        5,
        lambda: recover.run(source, Options(**FAST), env_of("mlp", tmp_path, reference)),
    )
    assert sum(seen) == 512 + 2


def test_minutes_become_steps_that_a_restart_keeps(tmp_path):
    reference, source = pruned("mlp", tmp_path)
    env = env_of("mlp", tmp_path, reference)
    made = recover.run(source, Options(minutes=0.02, batch=32), env)
    steps = made.facts["recover"]["steps"]
    assert steps > 1
    (env.checkpoint / loop.CHECKPOINT).unlink()
    again = recover.run(source, Options(minutes=0.02, batch=32), env_of("mlp", tmp_path, reference))
    assert again.facts["recover"]["steps"] == steps


def test_outputs_too_large_for_the_cache_are_computed_as_needed(tmp_path, monkeypatch):
    reference, source = pruned("mlp", tmp_path)
    cached = recover.run(source, Options(**FAST), env_of("mlp", tmp_path, reference, name="cached"))
    monkeypatch.setattr(teacher, "LIMIT_BYTES", 100)
    env = env_of("mlp", tmp_path, reference, name="direct")
    direct = recover.run(source, Options(**FAST), env)
    assert not list(env.checkpoint.glob("*.npy"))
    losses = [a.facts["recover"]["held_out"] for a in (cached, direct)]
    np.testing.assert_allclose(*losses, rtol=0.05)


def test_progress_rises_and_estimates_the_time_left(tmp_path):
    reference, source = pruned("mlp", tmp_path)
    env = env_of("mlp", tmp_path, reference)
    recover.run(source, Options(**FAST), env)
    done = [d for d, _ in env.told]
    assert done == sorted(done)
    assert done[-1] == 1.0
    assert "s left" in env.told[-1][1]


def test_an_original_has_nothing_to_recover(tmp_path):
    reference = sm.source("mlp", tmp_path / "source")
    with pytest.raises(UsageError, match="did not bring the module closer"):
        recover.run(reference, Options(**FAST), env_of("mlp", tmp_path, reference))


@pytest.mark.parametrize(("layers", "note"), [(("0", "2", "4"), True), (("0",), False)])
def test_frozen_weights_stay_unless_all_are(layers, note, tmp_path):
    reference, source = pruned("mlp", tmp_path)
    before = load_module(source, sm.CASES["mlp"][0]).state_dict()

    def frozen():
        module = sm.CASES["mlp"][0]()
        for name in layers:
            module.get_submodule(name).requires_grad_(False)
        return module

    env = env_of("mlp", tmp_path, reference)
    env.factory = frozen
    made = recover.run(source, Options(**FAST), env)
    after = load_module(made, frozen)
    assert any("all frozen" in told for told in made.facts["notes"]) is note
    assert torch.equal(after.state_dict()["0.weight"], before["0.weight"]) is not note
    assert not torch.equal(after.state_dict()["2.weight"], before["2.weight"])
    assert not any(after.get_submodule(name).weight.requires_grad for name in layers)


def test_frozen_norms_keep_their_statistics(tmp_path):
    reference, source = pruned("residual", tmp_path)
    stats = load_module(source, sm.CASES["residual"][0]).state_dict()

    def frozen():
        module = sm.CASES["residual"][0]()
        module[1].requires_grad_(False)
        return module

    env = env_of("residual", tmp_path, reference)
    env.factory = frozen
    after = load_module(recover.run(source, Options(**FAST), env), frozen).state_dict()
    moved = {k for k in stats if "running" in k and not torch.equal(after[k], stats[k])}
    assert moved
    assert not any(name.startswith("1.") for name in moved)


def test_a_module_without_weights_has_nothing_to_train(tmp_path):
    source = sm.artifact(torch.nn.ReLU(), tmp_path / "source", *sm.CASES["mlp"][1:])
    env = env_of("mlp", tmp_path, source)
    env.factory = torch.nn.ReLU
    with pytest.raises(UsageError, match="no weights to train"):
        recover.run(source, Options(**FAST), env)


def test_divergence_names_the_learning_rate(tmp_path):
    reference, source = pruned("mlp", tmp_path)
    with pytest.raises((BuildFailed, UsageError), match="lower lr"):
        recover.run(source, Options(**FAST, lr=1e20), env_of("mlp", tmp_path, reference))


@pytest.mark.parametrize("name", ["residual", "encoder"])
def test_features_come_closer_where_they_are_asked_for(name, tmp_path):
    reference, source = pruned(name, tmp_path)
    factory, x = sm.CASES[name][0], torch.from_numpy(sm.feeds(name, 128, seed=9))
    original = sm.settled(name)

    def far(artifact, features):
        student, found = load_module(artifact, factory), []
        chosen = choose_features(student, original, [x], artifact.facts["removed"], features)
        for module in (student, original):
            with torch.no_grad(), tapped(module, features) as inner:
                call(module, [x])
            found.append(inner)
        return float(
            distance(
                [found[0][f.name] for f in chosen],
                [f.of_original(found[1][f.name]) for f in chosen],
            )
        )

    made = {}
    for wanted in ("none", 2):
        env = env_of(name, tmp_path, reference, name=f"features{wanted}")
        made[wanted] = recover.run(source, Options(**FAST, features=wanted), env)
    features = tuple(made[2].facts["recover"]["features"])
    assert features
    assert made["none"].facts["recover"]["features"] == []
    assert far(made[2], features) < far(made["none"], features)


def test_features_survive_a_kill_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    reference, source = pruned("residual", tmp_path)
    options = Options(**FAST, features=2)
    whole = recover.run(source, options, env_of("residual", tmp_path, reference, name="whole"))
    again = resumed(
        monkeypatch,
        7,
        lambda: recover.run(source, options, env_of("residual", tmp_path, reference, name="k")),
    )
    assert again.digest() == whole.digest()


def test_labels_teach_what_the_original_does_not_know(tmp_path):
    reference, source = pruned("mlp", tmp_path)
    x = sm.feeds("mlp", 512)
    truth = x[:, :10].argmax(1)  # an untrained original has no idea of it
    accuracies = []
    for share in (0, 0.9):
        env = env_of("mlp", tmp_path, reference, labels=truth.tolist(), name=f"labels{share}")
        made = recover.run(source, Options(epochs=12, batch=32, labels=share), env)
        found = sm.outputs(load_module(made, sm.CASES["mlp"][0]), x)[0].argmax(1)
        accuracies.append((found == truth).mean())
    assert accuracies[1] > accuracies[0] + 0.1
    assert "cross-entropy of y0 on labels at 90%" in made.facts["notes"][-1]


def absolute(outputs, labels):
    return (outputs["y0"].sum(1) - labels).abs().mean()


def test_the_users_loss_is_trained_on(tmp_path):
    reference, source = pruned("mlp", tmp_path)
    x = sm.feeds("mlp", 512)
    labels = x.sum(1).tolist()
    options = Options(epochs=12, batch=32, labels=1, loss=f"{__name__}:absolute")
    made = recover.run(source, options, env_of("mlp", tmp_path, reference, labels=labels))
    losses = [
        float(
            absolute(
                {"y0": torch.from_numpy(sm.outputs(load_module(a, sm.CASES["mlp"][0]), x)[0])},
                torch.tensor(labels),
            )
        )
        for a in (source, made)
    ]
    assert losses[1] < 0.8 * losses[0]


def test_labels_are_missed_before_any_work(tmp_path):
    reference = sm.source("mlp", tmp_path / "source")
    env = env_of("mlp", tmp_path, reference)
    with pytest.raises(UsageError, match="the training data has none"):
        recover.check_data(Options(labels=0.5), env.data)
    recover.check_data(Options(), env.data)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 1, "minutes": 1},
        {"lr": 0},
        {"batch": 0},
        {"held_out": 1.0},
        {"steps": -1},
        {"labels": 1.5},
        {"loss": "my:loss"},
        {"features": -1},
        {"features": "al"},
        {"rounds": "x"},
        {"rounds": 0},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(UsageError):
        Options(**options)


def test_exported_models_are_refused_with_the_fix(tmp_path):
    source = sm.source("mlp", tmp_path)
    exported = Artifact(source.root, "exported", "m.pt2", source.inputs, source.outputs, {}, {})
    (refusal,) = recover.refusals(exported, Options(), Context())
    assert "give the torch module" in refusal.fix
