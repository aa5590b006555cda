"""Pruning in rounds and a loss of the user's, through a whole run and its lock file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="module sources need the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

import compressor
from compressor.recipe import parse_recipe
from compressor.session import Request, Session
from compressor.store import Store
from runtimes.errors import UsageError
from runtimes.types import sha256_of
from tests import models

LOSS = """
from torch.nn import functional


def loss(outputs, labels):
    return functional.cross_entropy(outputs["logits"], labels.long(), label_smoothing={smooth})
"""


def recipe(prune: dict[str, Any], recover: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {
            "source": "tests.torch_models:tiny_resnet",
            "inputs": {"image": ["batch", 1, 28, 28]},
            "outputs": ["logits"],
        },
        "data": {"training": "training.npz"},
        "steps": [{"prune_channels": {"multiple": 1, "samples": 64, **prune}},
                  {"recover": {"batch": 32, **recover}}],
        "targets": {"onnxruntime": {"steps": ["to_onnxruntime"]}},
        "gates": ["agreement>=0%", "speedup>=0.01", "size_reduction>=0%"],
    }  # fmt: skip


def data(folder: Path, *, labels: bool = True) -> Path:
    arrays = models.fashion_like(400, seed=0)
    if not labels:
        arrays.pop("labels")
    np.savez(folder / "training.npz", **arrays)
    return folder


def session(folder: Path, steps: dict[str, Any]) -> Session:
    store = Store(folder / "store")
    return Session(Request(parse_recipe(steps, "recipe"), folder, folder / "out", store))


def test_rounds_are_steps_and_the_lock_repeats_them(tmp_path: Path) -> None:
    import yaml

    given = recipe({"keep": {"macs": 0.5}}, {"minutes": 0.2, "rounds": 2})
    given["data"] = {"training": str(data(tmp_path) / "training.npz")}
    first = compressor.compress(
        None, given, effort="quick", out=tmp_path / "out", store=tmp_path / "store"
    )
    shared = [s for s in first.record.steps if s.target is None and s.step in STEPS]
    assert [s.step for s in shared] == [*STEPS, *STEPS]
    assert "round 1 of 2" not in str(first.record.recipe), "the recipe stays the user's"
    lock = tmp_path / "out" / "recipe.lock.yaml"
    locked = yaml.safe_load(lock.read_text())["steps"]
    assert [next(iter(s)) for s in locked] == [*STEPS, *STEPS]
    assert all(s["recover"]["steps"] and "minutes" not in s["recover"] for s in locked[1::2])
    again = compressor.compress(
        None, lock, effort="quick", out=tmp_path / "again", store=tmp_path / "other"
    )
    assert again.record.reproducible
    assert weights(tmp_path / "store") == weights(tmp_path / "other")


def weights(store: Path) -> set[str]:
    """Digests of the weights of every module in a store."""
    return {sha256_of(p) for p in store.glob("objects/*/*/weights.safetensors")}


STEPS = ["prune_channels", "recover"]


def test_a_finished_round_is_not_done_again(tmp_path: Path) -> None:
    data(tmp_path)
    steps = recipe({"keep": {"macs": 0.5}}, {"steps": 8, "rounds": 2})
    opened = session(tmp_path, steps)
    opened.engine.advance(opened.engine.source, opened.plan.shared[:2])
    again = session(tmp_path, steps)
    made = again.engine.advance(again.engine.source, again.plan.shared)
    assert [r.status for r in again.engine.records[1:]] == ["hit", "hit", "ran", "ran"]
    whole = session(tmp_path, recipe({"keep": {"macs": 0.99}}, {"steps": 1})).engine.source
    assert made.facts["parameters"] < whole.facts["parameters"]


def test_another_loss_in_the_same_file_trains_again(tmp_path: Path) -> None:
    data(tmp_path)
    steps = recipe({"keep": {"macs": 0.6}}, {"steps": 8, "labels": 0.5, "loss": "own_loss:loss"})
    digests, hits = [], []
    for smooth in (0.0, 0.0, 0.5):
        (tmp_path / "own_loss.py").write_text(LOSS.format(smooth=smooth))
        opened = session(tmp_path, steps)
        keys = [opened.engine._code(s.options) for s in opened.plan.shared]
        assert not keys[0]
        digests.append(keys[1]["loss"]["own_loss.py"])
        if len(digests) < 3:
            opened.engine.advance(opened.engine.source, opened.plan.shared)
            hits.append(opened.engine.records[-1].status)
    assert hits == ["ran", "hit"]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("labels", "recover", "says"),
    [
        (False, {"labels": 0.5}, "the training data has none"),
        (True, {"labels": 0.5, "loss": "nowhere:loss"}, "no module nowhere"),
        (True, {"rounds": 2}, "what share of the model stays"),
    ],
)
def test_what_is_lacking_is_told_before_any_step(
    labels: bool, recover: dict[str, Any], says: str, tmp_path: Path
) -> None:
    data(tmp_path, labels=labels)
    keep = {"macs": "300k"} if "rounds" in recover else {"macs": 0.5}
    with pytest.raises(UsageError, match=says):
        session(tmp_path, recipe({"keep": keep}, recover))


def test_the_recovered_module_is_put_beside_what_ships(tmp_path: Path) -> None:
    """For training on with the user's own loop; a run without one leaves no older one there."""
    import torch

    given = recipe({"keep": {"macs": 0.5}}, {"steps": 2})
    given["data"] = {"training": str(data(tmp_path) / "training.npz")}
    out = tmp_path / "out"
    done = compressor.compress(None, given, effort="quick", out=out, store=tmp_path / "store")
    module = compressor.load_module(out / "module")
    assert sum(p.numel() for p in module.parameters()) < done.record.reference.parameters
    images = models.fashion_like(8, seed=1)["image"]
    with torch.no_grad():
        mine = module(torch.from_numpy(images)).numpy()
    import onnxruntime as ort

    session = ort.InferenceSession(str(next((out / "onnxruntime").glob("*.onnx"))))
    (shipped,) = session.run(None, {"image": images})
    np.testing.assert_allclose(mine, shipped, rtol=1e-3, atol=1e-4)
    without = {k: v for k, v in given.items() if k != "steps"}
    compressor.compress(None, without, effort="quick", out=out, store=tmp_path / "store")
    assert not (out / "module").exists()


def test_a_timed_build_leaves_out_training_and_the_rounds_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data(tmp_path)
    steps = recipe({"keep": {"latency": 0.5}}, {"steps": 8, "rounds": 2})
    steps["targets"] = {"onnxruntime": {"steps": [*steps.pop("steps"), "to_onnxruntime"]}}
    opened = session(tmp_path, steps)
    own = opened.plan.targets[0].rungs[0].steps
    assert [s.name for s in own] == [*STEPS, *STEPS, "to_onnx", "to_onnxruntime"]
    built: list[str] = []
    monkeypatch.setattr(opened.engine, "advance", lambda _, rest, __: built.extend(
        s.name for s in rest))  # fmt: skip
    opened._built(opened.engine.source, own[1:], "onnxruntime", None)
    assert built == ["to_onnx", "to_onnxruntime"]
