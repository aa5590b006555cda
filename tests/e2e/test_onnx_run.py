"""The command on an ONNX file, from outside: what it writes, says and exits with."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from compressor.record import json_schema, load_record
from exporters._drop_in import drop_in_differences
from runtimes.types import Artifact
from tests.e2e.conftest import Bench, run_flags


def shipped(record: dict[str, Any], target: str = "onnxruntime") -> dict[str, Any]:
    """The candidate that a target ships."""
    (found,) = [t for t in record["targets"] if t["name"] == target]
    return next(c for c in found["candidates"] if c["name"] == found["shipped"])


def digests(record: dict[str, Any]) -> list[str]:
    return [step["digest"] for step in record["steps"]]


def test_it_ships_a_smaller_candidate_that_passed_every_gate(
    bench: Bench, finished: dict[str, Any]
) -> None:
    chosen = shipped(finished)
    assert chosen["role"] == "candidate"
    given = (bench.folder / "net.onnx").stat().st_size
    assert finished["reference"]["size_bytes"] == given
    assert chosen["size_bytes"] < 0.6 * given
    assert {c["state"] for c in chosen["checks"]} == {"pass"}


def test_the_ledger_sums_to_the_files(bench: Bench, finished: dict[str, Any]) -> None:
    chosen = shipped(finished)
    artifact = Artifact.load(bench.folder / "out" / "onnxruntime")
    assert sum(row["size_bytes"] for row in chosen["ledger"]) == artifact.size_bytes
    assert artifact.size_bytes == chosen["size_bytes"]


def test_the_artifact_is_a_drop_in(bench: Bench, finished: dict[str, Any]) -> None:
    artifact = Artifact.load(bench.folder / "out" / "onnxruntime")
    given = onnx.load(bench.folder / "net.onnx")
    built = onnx.load(artifact.path)
    assert [i.name for i in built.graph.input] == [i.name for i in given.graph.input]
    kept = {p.key: p.value for p in built.metadata_props}
    assert all(kept.get(p.key) == p.value for p in given.metadata_props)
    assert not drop_in_differences(artifact, artifact)


def test_the_record_fits_its_schema(bench: Bench, finished: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="validates against the shipped schema")
    jsonschema.validate(finished, json_schema())
    assert load_record(bench.folder / "out").exit_code == 0


def test_the_report_needs_nothing_from_elsewhere(bench: Bench, finished: dict[str, Any]) -> None:
    html = (bench.folder / "out" / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="https?://', html)
    assert (bench.folder / "out" / "report.md").stat().st_size < 60_000


def test_the_package_verifies(bench: Bench, finished: dict[str, Any]) -> None:
    done = bench.compress("verify", "out/packages/net-onnxruntime.tar.gz")
    assert done.returncode == 0, done.stderr
    assert "reproduced" in done.stdout


def test_a_tampered_package_is_exit_7(bench: Bench, finished: dict[str, Any]) -> None:
    data = bytearray((bench.folder / "out/packages/net-onnxruntime.tar.gz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (bench.folder / "bad.tar.gz").write_bytes(data)
    assert bench.compress("verify", "bad.tar.gz").returncode == 7


def test_a_second_run_reuses_every_step_and_score(bench: Bench, finished: dict[str, Any]) -> None:
    done = bench.compress(*run_flags("again", "--max-drop", "0.2"))
    assert done.returncode == 0
    again = bench.record("again")
    assert {step["status"] for step in again["steps"]} == {"hit"}
    assert "samples)" not in done.stderr  # every score was reused
    assert digests(again) == digests(finished)


def test_a_clean_store_gives_the_same_bytes(bench: Bench, finished: dict[str, Any]) -> None:
    done = bench.compress(*run_flags("clean", "--max-drop", "0.2"), store="other")
    assert done.returncode == 0
    clean = bench.record("clean")
    assert {s["status"] for s in clean["steps"] if s["step"] == "quantize_static"} >= {"ran"}
    assert digests(clean) == digests(finished)
    package = "packages/net-onnxruntime.tar.gz"
    first = (bench.folder / "out" / package).read_bytes()
    assert first == (bench.folder / "clean" / package).read_bytes()


def test_a_gate_nothing_can_pass_is_exit_1_and_ships_the_twin(
    bench: Bench, finished: dict[str, Any]
) -> None:
    done = bench.compress(*run_flags("tight", "--gate", "size_reduction>=99%"))
    assert done.returncode == 1
    record = bench.record("tight")
    assert shipped(record)["role"] == "twin"
    failed = list((bench.folder / "tight" / "candidates").glob("*.FAILED.txt"))
    assert failed
    assert "size_reduction>=99%" in failed[0].read_text()
    assert "FAIL" in done.stdout


def test_an_up_to_date_output_is_left_alone(bench: Bench, finished: dict[str, Any]) -> None:
    flags = run_flags("out", "--max-drop", "0.2", "--depfile", "out.d")
    before = (bench.folder / "out" / "run.json").stat().st_mtime_ns
    done = bench.compress(*flags)
    assert done.returncode == 0
    assert "up to date" in done.stderr
    assert (bench.folder / "out" / "run.json").stat().st_mtime_ns == before
    depfile = (bench.folder / "out.d").read_text()
    assert all(name in depfile for name in ("net.onnx", "calib.npz", "eval.npz"))


def test_the_source_is_never_written_to(bench: Bench, finished: dict[str, Any]) -> None:
    (bench.folder / "net.onnx").chmod(0o444)
    before = (bench.folder / "net.onnx").read_bytes()
    assert bench.compress("check", "net.onnx", "--target", "onnxruntime").returncode == 0
    assert (bench.folder / "net.onnx").read_bytes() == before


def test_kill_9_and_run_again(bench: Bench, finished: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "compressor", *run_flags("killed", "--max-drop", "0.2")]
    for seconds in (1.5, 3.0):
        process = subprocess.Popen(
            command,
            cwd=bench.folder,
            env=bench.environment("killed-store"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = bench.compress(*run_flags("killed", "--max-drop", "0.2"), store="killed-store")
    assert done.returncode == 0
    assert digests(bench.record("killed")) == digests(finished)


def test_without_labels_outputs_are_held_to_the_original(bench: Bench) -> None:
    done = bench.compress(
        "run", "net.onnx", "--target", "onnxruntime", "--calibration", "calib.npz",
        "--effort", "quick", "--gate", "speedup>=0.1", "-o", "unlabelled",
    )  # fmt: skip
    record = bench.record("unlabelled")
    checks = {c["gate"]: c["state"] for c in shipped(record)["checks"]}
    assert "relative_drop<=1%" not in checks
    assert checks["agreement>=97%"] in ("pass", "inconclusive")
    assert done.returncode in (0, 3)
    assert any("not judged" in w for w in record["warnings"])


def test_without_data_nothing_is_calibrated(bench: Bench) -> None:
    done = bench.compress(
        "run", "net.onnx", "--target", "onnxruntime", "--effort", "quick",
        "--gate", "speedup>=0.1", "-o", "nodata",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = bench.record("nodata")
    assert shipped(record)["name"] == "w8"
    skipped = [c for c in record["targets"][0]["candidates"] if c["failure"]]
    assert all("needs calibration data" in c["failure"]["message"] for c in skipped)
    strict = bench.compress(
        "run", "net.onnx", "--target", "onnxruntime", "--effort", "quick",
        "--gate", "speedup>=0.1", "-o", "nodata", "--require-judged",
    )  # fmt: skip
    assert strict.returncode == 3


def test_torch_is_never_imported(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('torch was imported')")
    path = f"{tmp_path}:{bench.environment()['PYTHONPATH']}"
    done = bench.compress(
        *run_flags("notorch", "--max-drop", "0.2"), env={"PYTHONPATH": path}, store="notorch"
    )
    assert done.returncode == 0, done.stdout + done.stderr
