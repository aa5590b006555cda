"""What calibration says it will hold, beside what a process of its own was seen to hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.quantization.calibration_memory import LIVE_BYTES, Held, held
from tests import models
from tests.compressor.quantization.helpers import prepared
from tests.layers.tree import ROOT

SLACK = 30e6  # the engines' own
MEASURED = """
import json, re, sys
from pathlib import Path
import numpy as np
from exporters._memory import release
from runtimes.types import Artifact
from tests.compressor.quantization.helpers import apply
from tests.step_env import ArraySamples

def resident(kind):
    return 1024 * int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

place, artifact, *methods = sys.argv[1:]
given = Artifact.load(Path(artifact))
images = np.random.default_rng(0).random((32, 1, 160, 160), np.float32)
data = {"calibration": ArraySamples({"image": images})}
few = {"calibration": ArraySamples({"image": images[:2]})}
apply(Path(place), given, "quantize_static", data=few)  # imports are no part of it
found = {}
for method in methods:
    release()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    made = apply(Path(place), given, "quantize_static", data=data, method=method)
    (told,) = [n for n in made.facts["notes"] if n.startswith("calibration holds at most")]
    found[method] = [resident("VmHWM") - before, 1e6 * int(told.split()[4].replace(",", ""))]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("target", "methods"),
    [
        ("onnxruntime", ("minmax", "percentile", "mse", "entropy")),
        ("openvino", ("minmax", "percentile", "mse")),
    ],
)
def test_what_is_told_holds_and_is_no_wild_guess(target, methods, tmp_path, monkeypatch):
    monkeypatch.setitem(models.ALL, "large", lambda: models.convnet(size=160, width=32))
    given = prepared(tmp_path, "large", target)
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(given.root), *methods]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for method, (measured, told) in json.loads(done.stdout.splitlines()[-1]).items():
        assert measured < told + SLACK, method
        assert told < 4 * measured + SLACK, method


def test_it_is_said_in_a_sentence() -> None:
    assert str(Held(16, 40_000_000, 67_000_000, 9_000_000, 2)) == (
        "calibration holds at most 116 MB (40 MB of activations, batches of 16; 67 MB of "
        "histograms; 9 MB for copies of the model; 2 tensors of unknown size not counted)"
    )


def test_activations_count_as_they_live() -> None:
    # The image, and in the residual block its input and what the second Conv reads and makes.
    model = models.convnet(size=32)
    found = held(model, {}, "minmax", "onnxruntime")
    plane = 4 * 32 * 32 * 16
    assert found.samples == 16
    assert found.unknown == 0
    assert found.activations == 16 * (3 * plane + 4 * 32 * 32) + 9 * plane
    clipped = held(model, {}, "entropy", "onnxruntime")
    assert clipped.activations == found.activations
    assert clipped.histograms > 0


def test_an_if_is_calibrated_a_sample_at_a_time() -> None:
    assert held(models.if_subgraph(), {}, "minmax", "openvino").samples == 1


def test_large_samples_go_in_smaller_batches() -> None:
    model = models.convnet(size=512, width=64)
    found = held(models.convnet(size=128, width=64), {}, "minmax", "onnxruntime")
    assert 1 < found.samples < 16
    assert found.activations <= LIVE_BYTES + 9 * 4 * 128 * 128 * 64
    assert held(model, {}, "minmax", "openvino").samples < 3
    assert held(model, {}, "minmax", "onnxruntime").samples == 1
