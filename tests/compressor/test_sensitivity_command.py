"""`compress sensitivity` from outside: its table, its data, and lines that can be pasted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from compressor.cli import main
from compressor.record import load_record
from compressor.report import html, markdown, terminal
from compressor.result import Candidate, LayerRow
from tests import models
from tests.compressor.test_stateful import layered, sequences

BOTH = ("onnxruntime", "openvino")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPRESS_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    fitted = models.trained(models.convnet(width=48), models.fashion_like(600, seed=0))
    models.save(fitted, tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", image=models.fashion_like(120, seed=1)["image"])
    np.savez(tmp_path / "eval.npz", **models.fashion_like(300, seed=2))
    return tmp_path


def sensitivity(target: str, *more: str) -> int:
    pytest.importorskip(target, reason=f"needs {target}")
    flags = ("--target", target, "--calibration", "calib.npz", "--samples", "32", "-q")
    return main(["sensitivity", "net.onnx", *flags, *more])


@pytest.mark.parametrize("target", BOTH)
def test_layers_are_listed_worst_first(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    assert sensitivity(target, "--json") == 0
    found = json.loads(capsys.readouterr().out)[target]["damage"]
    layers = [row["layer"] for row in found["rows"]]
    assert {"stem", "block.conv1", "block.conv2", "conv3"} <= set(layers)
    assert found["measured"] == found["groups"] == len(layers)
    shares = [row["share"] for row in found["rows"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    for row in found["rows"]:
        assert row["size_bytes"]["float"] > row["size_bytes"]["int8"]
        assert 5 < row["sqnr_db"]["int8"] < 100
    assert any(row["time_ns"] for row in found["rows"])


def test_people_get_a_table_and_lines_to_paste(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sensitivity("onnxruntime", "--sqnr", "60") == 0
    said = capsys.readouterr().out
    head = r"^  layer +op +float bytes .* int8 alone +w4 alone +of the damage"
    assert re.search(head, said, re.M)
    assert "    keep: {float: [" in said
    assert "    --keep-float " in said
    assert sensitivity("onnxruntime", "--sqnr", "1") == 0
    assert "no layer needs to stay float for 1 dB" in capsys.readouterr().out


def test_a_candidate_is_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = models.trained(models.convnet(width=48), models.fashion_like(300, seed=9))
    models.save(other, folder / "other.onnx")
    assert sensitivity("onnxruntime", "--against", "other.onnx") == 0
    said = capsys.readouterr().out
    assert "first below 20 dB: head, tensor logits (Gemm), equal before it" in said
    assert sensitivity("onnxruntime", "--against", str(folder / "nothing")) == 2
    assert "nothing to compare with" in capsys.readouterr().err


def test_without_calibration_data_it_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sensitivity", "net.onnx", "--target", "onnxruntime", "-q"]) == 2
    told = capsys.readouterr().err
    assert "calibration data, and none is given" in told
    assert "fix: add --calibration" in told


def run(target: str, gates: list[str], **more: Any) -> int:
    """INT8 alone as the one candidate of a target, into `out`."""
    recipe = {
        "schema": 1,
        "model": {"source": "net.onnx"},
        "data": {"calibration": "calib.npz", "evaluation": "eval.npz"},
        "metric": "top1",
        **more,
        "targets": {target: {"steps": [f"to_{target}", "quantize_static"]}},
        "gates": gates,
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return main(["run", "recipe.yaml", "-o", "out", "-q", "--effort", "quick"])


def pasted(said: str) -> dict[str, Any]:
    (line,) = re.findall(r"^    (keep: .*)$", said, re.M)
    found: dict[str, Any] = yaml.safe_load(line)
    return found


@pytest.mark.parametrize("target", BOTH)
def test_the_pasted_line_keeps_its_layers_float(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    assert sensitivity(target, "--json") == 0
    goal = json.loads(capsys.readouterr().out)[target]["damage"]["all_db"] + 1.5
    assert sensitivity(target, "--sqnr", str(goal)) == 0
    keep = pasted(capsys.readouterr().out)
    assert run(target, ["accuracy_drop<=20%", "speedup>=0.01"], **keep) == 0
    shipped = load_record(folder / "out").target(target).candidate("candidate")
    kept = [row for row in shipped.layers if row.layer in keep["keep"]["float"]]
    assert 0 < len(kept) == len(keep["keep"]["float"])
    assert all("float" in row.achieved for row in kept), kept
    assert any(row.achieved == "int8" for row in weighted(shipped))


def weighted(candidate: Candidate) -> list[LayerRow]:
    return [row for row in candidate.layers if row.weight_bytes]


@pytest.mark.parametrize("target", BOTH)
def test_a_failed_accuracy_gate_is_explained(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    pytest.importorskip(target, reason=f"needs {target}")
    assert run(target, ["sqnr>=150dB"]) == 1
    record = load_record(folder / "out")
    (looked,) = [c for c in record.target(target).candidates if c.damage is not None]
    assert looked.damage is not None
    assert looked.divergence is not None
    assert looked.damage.keep
    assert looked.damage.kept_db > looked.damage.all_db
    assert looked.divergence.compared > 5
    assert looked.divergence.outputs_db == pytest.approx(looked.comparison.sqnr_db, abs=4)
    said = capsys.readouterr().out
    assert "lost by" in said
    assert main(["explain", "out"]) == 0
    assert f"{looked.name}: most of the damage of" in capsys.readouterr().out
    assert f"Where {looked.name} lost its accuracy" in html(record)
    assert f"where {looked.name} lost its accuracy" in markdown(record)
    assert any("lost by" in line for line in terminal(record))


def test_a_passing_run_measures_no_damage(folder: Path) -> None:
    assert run("onnxruntime", ["accuracy_drop<=20%", "speedup>=0.01"]) == 0
    record = load_record(folder / "out")
    assert all(c.damage is None for t in record.targets for c in t.candidates)


def test_steps_of_sequences_carry_the_originals_state(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.save(layered(), folder / "steps.onnx")
    np.savez("sequences.npz", frame=sequences(8, 25))
    state = ["--state", "h_in=h_out", "--state", "c_in=c_out"]
    flags = ["--target", "onnxruntime", "--calibration", "sequences.npz", "--precision", "w4", "-q"]
    assert main(["sensitivity", "steps.onnx", *flags, *state, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["onnxruntime"]["damage"]
    assert [row["op"] for row in found["rows"]].count("LSTM") == 2
    assert found["all_db"] > 5
