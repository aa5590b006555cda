"""4-bit weights with a scale for every block of columns, folded while the model loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compressor.quantization.ledger import ledger
from compressor.quantization.sensitivity import BLOCKS, noise_share
from compressor.quantization.workbench import open_workbench
from runtimes.types import Artifact
from tests.compressor.quantization.helpers import apply, engine, feeds_for, prepared
from tests.contract import subjects
from tests.step_env import make_env

TARGETS = ("onnxruntime", "openvino")
SMALL = 16  # channels of the test models are narrow
FOUR = {"bits": 4, "share": 1.0}


def outputs(made: Artifact, given: Artifact) -> list[dict[str, np.ndarray]]:
    with engine(made).open_session(made) as session:
        return [session.run(feeds_for(given, 32))]


def in_bytes(made: Artifact) -> dict[str, int]:
    return {row.kind: row.size_bytes for row in ledger(made)}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["mlp", "transformer_block"])
def test_blocks_lose_less_and_cost_their_scales(tmp_path: Path, model: str, target: str) -> None:
    given = prepared(tmp_path, model, target)
    plain, blocked = (
        apply(tmp_path / str(block), given, "quantize_weights", block=block, **FOUR)
        for block in (0, SMALL)
    )
    reference = outputs(given, given)
    before, after = (noise_share(outputs(made, given), reference) for made in (plain, blocked))
    assert after < 0.9 * before
    sizes, more = in_bytes(plain), in_bytes(blocked)
    assert more["weights int4"] == sizes["weights int4"]
    assert sum(more.values()) > sum(sizes.values())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["mlp", "convnet", "transformer_block"])
def test_the_engine_computes_as_with_plain_weights(tmp_path: Path, model: str, target: str) -> None:
    given = prepared(tmp_path, model, target)
    blocked = apply(tmp_path, given, "quantize_weights", block=SMALL, **FOUR)
    ran = [
        sorted(layer.op for layer in engine(a).layer_precisions(a, feeds=feeds_for(given)))
        for a in (given, blocked)
    ]
    assert ran[0] == ran[1]


@pytest.mark.parametrize("target", TARGETS)
def test_blocks_of_one_layer(tmp_path: Path, target: str) -> None:
    given = prepared(tmp_path, "mlp", target)
    plain = apply(tmp_path / "plain", given, "quantize_weights", **FOUR)
    wanted = {"fc1": SMALL, "fc3": SMALL}
    made = apply(tmp_path, given, "quantize_weights", blocks=wanted, **FOUR)
    assert any("blocks: no weight here is called fc3" in note for note in made.facts["notes"])
    if target == "onnxruntime":
        more = in_bytes(made)["scales"] - in_bytes(plain)["scales"]
        assert more == 2 * 64 * 784 // SMALL - 4 * 64


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["mlp", "transformer_block"])
def test_the_search_knows_what_blocks_cost(tmp_path: Path, model: str, target: str) -> None:
    given = prepared(tmp_path, model, target)
    context = subjects.context("quantize_static", given.format)
    env = make_env(
        tmp_path, reference=given, data=subjects.data(given), context=context, name="bench"
    )
    bench = open_workbench(given, env, samples=32)
    offered = [g for g in bench.groups if BLOCKS in g.options]
    assert offered
    reference = bench.outputs({})
    for group in offered:
        blocks, plain, eight = (
            noise_share(bench.outputs({group.name: o}), reference) for o in (BLOCKS, "w4", "w8")
        )
        assert eight < blocks < plain
    made = apply(tmp_path, given, "quantize_mixed", assign={g.name: BLOCKS for g in offered})
    known, factors = in_bytes(made), in_bytes(given).get("scales", 0)  # of a norm
    assert known["weights int4"] + known["scales"] - factors == sum(
        bench.size_bytes(g, BLOCKS) for g in offered
    )
