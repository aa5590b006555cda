"""The bundle for a board: what it holds, that it repeats, and what is refused with which fix."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from exporters import to_tensorrt
from exporters._schemes import TENSORRT
from exporters._trt_rules import findings
from exporters.base import Context
from runtimes.arrays import read_arrays
from runtimes.errors import Unsupported
from runtimes.rt_onnxruntime import open_session
from runtimes.trt.bundle import read_bundle
from runtimes.types import Artifact
from tests import models
from tests.compressor.quantization.helpers import apply, prepared
from tests.exporters.helpers import artifact_of, named, step
from tests.exporters.test_trt_rules import integer_operator, plain
from tests.runtimes.trt import board
from tests.step_env import ArraySamples, make_env

TIME = {
    "tokens": {"time": (1, 8, 16)},
    "sequence": {"time": (1, 8, 16)},
    "ids": {"time": (1, 8, 16)},
}
FREE = {"transformer_block", "lstm", "gru", "int_embedding"}


def shapes_of(name: str, source: Artifact) -> Mapping[str, Any]:
    inputs = {spec.name for spec in source.inputs}
    return {k: v for k, v in TIME.items() if k in inputs} if name in FREE else {}


def described(made: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made.root / "trt.json").read_text())
    return found


@pytest.fixture(scope="module")
def int8(tmp_path_factory) -> Artifact:
    """`convnet` in INT8 with the rest in half precision, not yet a bundle."""
    folder = tmp_path_factory.mktemp("int8")
    made = apply(folder, prepared(folder, "convnet"), "quantize_static", scheme=TENSORRT)
    return apply(folder, made, "cast_half", compute="half", least_db=20.0)


def bundled(source: Artifact, folder: Path) -> Artifact:
    data = {"calibration": ArraySamples({"image": models.fashion_like(6, seed=1)["image"]})}
    env = make_env(folder, reference=source, context=Context(dims={"batch": 2}), data=data)
    return to_tensorrt.run(source, to_tensorrt.Options(), env)


@pytest.mark.parametrize("name", sorted(set(models.ALL) - {"already_quantized"}))
def test_every_model_becomes_a_bundle_that_the_board_reads(name, tmp_path):
    source = named(name, tmp_path)
    made = step(to_tensorrt, source, tmp_path, shapes=shapes_of(name, source))
    bundle = read_bundle(made.root)  # digests too
    assert bundle.data["precision"] == "fp32"
    assert not [f for f in findings(onnx.load(made.path)) if f.level == "error"]
    held = read_arrays(made.root / "reference.npz")
    feeds = {key[3:]: value for key, value in held.items() if key.startswith("in/")}
    with open_session(source) as session:
        for key, value in session.run(feeds).items():
            np.testing.assert_allclose(held[f"out/{key}"], value, rtol=1e-3, atol=1e-4)


def test_an_int8_bundle_says_what_each_layer_computes_in(int8, tmp_path):
    made = bundled(int8, tmp_path)
    found = described(made)
    assert found["precision"] == "int8"
    assert found["status"] == "portable"
    assert {row["precision"] for row in found["layers"]} == {"int8"}
    assert sum(row["macs"] for row in found["layers"]) == 112_896 + 2 * 1_806_336 + 225_792 + 320
    assert found["reference"] == {"samples": 4, "of": "calibration data"}
    assert (found["inputs"][0]["min"], found["inputs"][0]["max"]) == (
        [1, 1, 28, 28],
        [8, 1, 28, 28],
    )
    kinds = {tensor.data_type for tensor in onnx.load(made.path).graph.initializer}
    assert {TensorProto.INT8, TensorProto.FLOAT16} <= kinds
    assert "of the multiplications 100.0% in int8" in made.facts["notes"]


def test_only_the_model_counts_as_its_size(int8, tmp_path):
    made = bundled(int8, tmp_path)
    assert made.size_bytes == (made.root / "model.onnx").stat().st_size
    assert len(made.files) > 20  # the builder travels along


def test_the_same_source_gives_the_same_bundle(int8, tmp_path):
    assert bundled(int8, tmp_path / "a").digest() == bundled(int8, tmp_path / "b").digest()


def test_the_reference_comes_from_the_pairs_as_the_file_has_them(int8, tmp_path):
    made = bundled(int8, tmp_path)
    held = read_arrays(made.root / "reference.npz")
    with open_session(made) as session:
        got = session.run({"image": held["in/image"]})
    np.testing.assert_allclose(got["logits"], held["out/logits"], rtol=1e-3, atol=1e-3)


def test_the_builder_starts_on_a_machine_with_nothing_of_ours(int8, tmp_path):
    made = bundled(int8, tmp_path)
    done = subprocess.run(
        [sys.executable, "build_engine.py", "--result-json", "r.json"],
        cwd=made.root, env={"PATH": "/usr/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    result = json.loads((made.root / "r.json").read_text())
    assert done.returncode == result["exit_code"]
    assert result["bundle"] == described(made)["sha256"]["model.onnx"]
    assert done.returncode in {0, 4}  # 4: no driver, or no TensorRT


def test_a_free_dimension_is_asked_for_with_the_flag_to_type(tmp_path):
    source = named("transformer_block", tmp_path)
    refused = to_tensorrt.refusals(source, to_tensorrt.Options(), Context())
    assert [(r.where, r.fix) for r in refused] == [
        ("tokens", "add --shape tokens=1..8@1,1..64@16,32")
    ]
    with pytest.raises(Unsupported, match="dimension time is free"):
        step(to_tensorrt, source, tmp_path)
    made = step(to_tensorrt, source, tmp_path, shapes=TIME)
    spec = described(made)["inputs"][0]
    assert (spec["min"], spec["opt"], spec["max"]) == ([1, 1, 32], [1, 8, 32], [8, 16, 32])
    assert made.facts["bounds"] == {"batch": [1, 8], "time": [1, 16]}


def test_a_batch_that_nobody_named_is_said_with_the_flag_to_change_it(tmp_path):
    notes = step(to_tensorrt, named("mlp", tmp_path), tmp_path).facts["notes"]
    assert "engine built for batch 1 to 8, best at 1: --shape image=1..8@1" in notes


@pytest.mark.parametrize(
    ("make", "where", "why", "fix"),
    [
        (integer_operator, "conv", "no operator QLinearConv", "QDQ format"),
        (lambda: plain(zero=7), "conv.q", "zero point 7", "symmetrically"),
        (lambda: plain(zero=100, kind=np.uint8), "conv.q", "UINT8", "signed"),
    ],
)
def test_what_tensorrt_would_misread_is_refused_by_node(make, where, why, fix, tmp_path):
    source = artifact_of(make(), tmp_path)
    refused = to_tensorrt.refusals(source, to_tensorrt.Options(), Context())
    assert [r for r in refused if r.where == where and why in r.why and fix in r.fix]
    with pytest.raises(Unsupported, match=why):
        step(to_tensorrt, source, tmp_path)


def test_an_unsigned_model_is_taken_recentred(tmp_path):
    made = step(to_tensorrt, named("already_quantized", tmp_path), tmp_path)
    assert described(made)["precision"] == "int8"
    assert "6 unsigned Q and DQ made INT8" in made.facts["notes"]


def test_a_dla_core_takes_fixed_shapes_only(tmp_path):
    source = named("convnet", tmp_path)
    with pytest.raises(Unsupported, match="fixed shapes"):
        step(to_tensorrt, source, tmp_path, dla_core=0)
    made = step(to_tensorrt, source, tmp_path, dla_core=0, shapes={"image": {"batch": (1, 1, 1)}})
    assert described(made)["builder"]["dla_core"] == 0
    assert any("experimental" in note for note in made.facts["notes"])


def test_recurrent_layers_are_listed_in_float(tmp_path):
    made = step(to_tensorrt, named("gru", tmp_path), tmp_path, shapes=TIME)
    rows = {row["name"]: row for row in described(made)["layers"]}
    assert rows["rnn"]["precision"] == "float32"
    assert rows["rnn"]["macs"] > 0


WITH_GPU = """
import sys
from pathlib import Path
from exporters import to_tensorrt
from exporters.base import Context
from runtimes.arrays import read_arrays
from runtimes.rt_tensorrt import open_session
from runtimes.types import Artifact
from tests.step_env import make_env
source = Artifact.load(Path(sys.argv[1]))
env = make_env(Path(sys.argv[2]), reference=source, context=Context(dims={"batch": 2}))
made = to_tensorrt.run(source, to_tensorrt.Options(), env)
assert "tensorrt" in to_tensorrt.tools()
held = read_arrays(made.root / "reference.npz")
with open_session(made) as session:
    got = session.run({"image": held["in/image"]})
assert abs(got["logits"] - held["out/logits"]).max() < 0.1
print(made.root)
"""


@pytest.mark.slow
def test_with_a_gpu_the_engine_is_built_along_and_runs(int8, tmp_path):
    """On a machine that only seems to have one."""
    fake = board.environment()
    env = {**fake, "PYTHONPATH": f"{fake['PYTHONPATH']}:{Path(__file__).parents[2]}"}
    done = subprocess.run(
        [sys.executable, "-c", WITH_GPU, str(int8.root), str(tmp_path)],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = Artifact.load(Path(done.stdout.strip()))
    assert json.loads((made.root / "engine.json").read_text())["status"] == "validated"
    assert made.size_bytes == (made.root / "model.onnx").stat().st_size
    assert made.facts["not_reproducible"]
    assert any(note.startswith("engine for") for note in made.facts["notes"])
