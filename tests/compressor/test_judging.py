"""How many samples are scored at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compressor.env import Silent
from compressor.judging import SCORING_BATCH, SCORING_BYTES, Judge
from compressor.recipe import MeasureSpec
from compressor.store import Store
from runtimes.types import Artifact, TensorSpec
from tests.step_env import ArraySamples


def judge(tmp_path: Path, side: int, count: int) -> Judge:
    samples = ArraySamples({"image": np.zeros((count, 3, side, side), np.float32)})
    return Judge(
        store=Store(tmp_path),
        measure=MeasureSpec(),
        progress=Silent(),
        samples=samples,
        metric=None,
        evaluator=None,
        seed=0,
        threads=1,
        dims={"length": 8},
        timing_data=None,
        samples_dir=tmp_path,
    )


def artifact(tmp_path: Path, batch: int | str, side: int, *made: int | str) -> Artifact:
    image = TensorSpec("image", "float32", (batch, 3, side, side))
    return Artifact(
        tmp_path, "onnx", "m.onnx", (image,), (TensorSpec("y", "float32", (batch, *made)),), {}, {}
    )


@pytest.mark.parametrize(
    ("side", "made", "batch"),
    [
        (28, (10,), SCORING_BATCH),
        (224, (1000,), SCORING_BYTES // (4 * (3 * 224 * 224 + 1000))),
        (28, ("length", 50_000), SCORING_BYTES // (4 * (3 * 28 * 28 + 8 * 50_000))),
        (1024, (10,), 1),
    ],
)
def test_large_samples_are_scored_in_small_batches(
    tmp_path: Path, side: int, made: tuple[int | str, ...], batch: int
) -> None:
    assert judge(tmp_path, side, 2)._scoring_batch(artifact(tmp_path, "n", side, *made)) == batch


def test_a_fixed_batch_stays(tmp_path: Path) -> None:
    found = judge(tmp_path, 512, 16)._scoring_batch(artifact(tmp_path, 8, 512, 10))
    assert found == 8
