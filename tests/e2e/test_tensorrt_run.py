"""A run for TensorRT where there is no GPU: what is judged, what is not, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from runtimes.trt.bundle import read_bundle
from tests.e2e.conftest import Bench
from tests.e2e.test_onnx_run import shipped

RUN = ("run", "net.onnx", "--target", "tensorrt", "--effort", "quick", "--max-drop", "0.2")
DATA = ("--calibration", "calib.npz", "--evaluation", "eval.npz", "--metric", "top1")


@pytest.fixture(scope="module")
def ran(bench: Bench) -> dict[str, Any]:
    done = bench.compress(*RUN, *DATA, "-o", "trt")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no engine was built" in " ".join(done.stdout.split())
    return bench.record("trt")


def test_int8_ships_with_what_could_not_be_judged_left_open(ran: dict[str, Any]) -> None:
    chosen = shipped(ran, "tensorrt")
    states = {check["gate"].split("<")[0].split(">")[0]: check for check in chosen["checks"]}
    assert chosen["name"] == "int8"
    assert states["size_reduction"]["state"] == "pass"
    assert states["speedup"]["state"] == "not_judged"
    assert "no engine here" in states["speedup"]["text"]
    accuracy = next(c for gate, c in states.items() if "drop" in gate)
    assert accuracy["state"] == "not_judged"
    assert "only emulated by onnxruntime" in accuracy["text"]


def test_scores_are_emulated_and_nothing_was_timed(ran: dict[str, Any]) -> None:
    (target,) = ran["targets"]
    assert target["emulator"] == "onnxruntime"
    assert target["without"]
    for candidate in target["candidates"]:
        assert candidate["score"]["status"] == "emulated"
        assert candidate["timings"] == []
    assert {c["role"] for c in target["candidates"]} == {"candidate", "twin", "half_twin"}
    assert {row["achieved"] for row in shipped(ran, "tensorrt")["layers"]} == {"not run"}


def test_the_bundle_lies_in_the_output_and_in_the_package(
    bench: Bench, ran: dict[str, Any]
) -> None:
    bundle = read_bundle(bench.folder / "trt" / "tensorrt")
    assert bundle.data["status"] == "portable"
    chosen = shipped(ran, "tensorrt")
    assert chosen["size_bytes"] == bundle.model.stat().st_size
    assert sum(row["size_bytes"] for row in chosen["ledger"]) == chosen["size_bytes"]
    done = bench.compress("verify", "trt/packages/net-tensorrt.tar.gz")
    assert done.returncode == 0, done.stderr
    assert "engine: onnxruntime" in done.stdout


def test_what_is_open_counts_where_everything_must_be_judged(
    bench: Bench, ran: dict[str, Any]
) -> None:
    assert bench.compress(*RUN, *DATA, "-o", "strict", "--require-judged").returncode == 3


def test_a_loss_that_shows_on_another_engine_fails(bench: Bench, ran: dict[str, Any]) -> None:
    done = bench.compress(*RUN, *DATA, "-o", "strict", "--gate", "sqnr>=90dB")
    assert done.returncode == 1
    assert shipped(bench.record("strict"), "tensorrt")["role"] != "candidate"


def test_without_data_the_half_precision_model_ships(bench: Bench) -> None:
    done = bench.compress(*RUN, "-o", "bare")
    assert done.returncode == 0, done.stderr
    assert shipped(bench.record("bare"), "tensorrt")["name"] == "half"
