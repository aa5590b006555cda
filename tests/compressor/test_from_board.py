"""`compress report --add`: a board's results find their bundle, or are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from compressor.cli import main
from compressor.from_board import add_result, read_result
from compressor.record import dump_record, load_record
from compressor.report import html, markdown
from compressor.result import Check, RunRecord, Score
from runtimes.errors import BadArtifact, UsageError
from runtimes.trt.timing import summary
from runtimes.trt.work import blank
from runtimes.types import Artifact, TensorSpec
from tests import models
from tests.run_records import candidate, record, target

DEVICE = {"name": "Orin", "sm": 87, "power_mode": "MAXN", "memory_bytes": 8 << 30}
DEVICE |= {"integrated": True, "model": "Jetson Orin Nano"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run's folder whose target made a bundle: scores emulated, latency not judged."""
    root = tmp_path / "out" / "tensorrt"
    root.mkdir(parents=True)
    models.save(models.mlp(), root / "model.onnx")
    (root / "trt.json").write_text("{}")
    specs = [TensorSpec("image", "float32", ("batch", 1, 28, 28))]
    made = Artifact.write(root, "tensorrt", "model.onnx", specs, [])
    gates = [
        Check("size_reduction>=75%", "pass", "92 % smaller", 0.92, None, 0.75),
        Check("p99@4<=9ms", "not_judged", "not judged: nothing was timed here", None, None, 9.0),
        Check("speedup>=1.0", "not_judged", "not judged: nothing was timed here", None, None, 1.0),
    ]
    score = Score("top1", 0.92, n=10_000, status="emulated", engine="onnxruntime")
    chosen = candidate("int8", 0.003, None, checks=gates, timings=[], score=score)
    chosen = dataclasses.replace(
        chosen, format="tensorrt", path="tensorrt", digest=made.digest(), state="pass"
    )
    one = target("tensorrt", shipped="int8", device="GPU", candidates=[chosen])
    dump_record(record(one), tmp_path / "out" / "run.json")
    return tmp_path / "out"


def told(out: Path, latency_ms: float = 2.0, **changes: Any) -> dict[str, Any]:
    """What the board writes, in its own shape: `blank` and `summary` are the product's."""
    rows = [(0.2, latency_ms - 0.3 + i * 1e-4, 0.1, 0.05) for i in range(200)]
    times = [{"graph": graph, "batch": 4, **summary(rows, 500.0)} for graph in (False, True)]
    made = blank() | {"bundle": Artifact.load(out / "tensorrt").files["model.onnx"]}
    made |= {"status": "validated", "device": DEVICE, "timing": times}
    made |= {"versions": {"tensorrt": "10.3.0", "cuda": "12.6", "driver": None}}
    made |= {"layers": {"int8": 5, "float16": 2, "reformats": 1, "fell_back": ["conv3"]}}
    made["numeric"] = {"logits": {"sqnr_db": 41.5, "max_abs": 0.1, "float": True}}
    return made | changes


def add(out: Path, data: dict[str, Any]) -> tuple[int, RunRecord]:
    (out.parent / "r.json").write_text(json.dumps(data))
    code = main(["report", str(out), "--add", str(out.parent / "r.json")])
    return code, load_record(out)


def test_results_come_back(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, made = add(out, told(out))
    assert (code, made.exit_code, made.state) == (0, 0, "pass")
    (chosen,) = made.target("tensorrt").candidates
    (board,) = chosen.boards
    assert (board.status, board.device["sm"], len(board.timing)) == ("validated", 87, 2)
    assert chosen.score is not None
    assert chosen.score.status == "emulated", "the board scored nothing"
    (timing,) = chosen.timings
    assert (timing.batch, timing.source, timing.n) == (4, "reported", 200)
    assert timing.p50_ms == pytest.approx(2.01, abs=0.01)  # compute and transfers
    low, high = timing.p50_interval_ms
    assert low <= timing.p50_ms <= high
    assert "Jetson Orin Nano (MAXN), by CUDA events" in timing.doubts[0]
    checks = {check.gate: check for check in chosen.checks}
    assert checks["p99@4<=9ms"].state == "pass"
    assert checks["p99@4<=9ms"].text.startswith(
        "Jetson Orin Nano (MAXN): batch 4: p99 2.02 ms (reported)"
    )
    assert checks["speedup>=1.0"].state == "not_judged", "no twin was timed on the board"
    assert checks["engine on Jetson Orin Nano (MAXN)"].state == "pass"
    printed = capsys.readouterr().out
    assert "int8 on Jetson Orin Nano (MAXN): validated; tensorrt 10.3.0, cuda 12.6" in " ".join(
        printed.split()
    )
    for text in (html(made), markdown(made)):
        assert "asked for INT8 and run in float: conv3" in text
        assert "On boards" in text or "on boards" in text
    assert (out / "report.html").read_text() == html(made)


def test_the_newest_of_a_board_counts(out: Path) -> None:
    add(out, told(out))
    code, made = add(out, told(out, latency_ms=12.0))
    assert (code, made.target("tensorrt").exit_code, made.state) == (1, 1, "fail")
    assert add(out, told(out))[1].state == "pass", "what went wrong was mended"
    other = told(out, latency_ms=3.0, device=DEVICE | {"power_mode": "15W"})
    _, made = add(out, other)
    (chosen,) = made.target("tensorrt").candidates
    assert [b.device["power_mode"] for b in chosen.boards] == ["MAXN", "15W"]
    assert [t.batch for t in chosen.timings] == [4]


def test_no_verdict_rests_on_unsteady_times(out: Path) -> None:
    data = told(out)
    data["timing"][0]["cov"] = 0.2
    code, made = add(out, data)
    gate = made.target("tensorrt").candidates[0].checks[1]
    assert (code, gate.state) == (0, "not_judged")
    assert "varied by 20%" in gate.text
    _, made = add(out, told(out))
    assert made.target("tensorrt").candidates[0].checks[1].state == "pass", "steady times decide"


@pytest.mark.parametrize(
    ("code", "state", "exit_code"), [(7, "fail", 1), (5, "fail", 1), (4, "not_judged", 0)]
)
def test_what_went_wrong_there(code: int, state: str, exit_code: int, out: Path) -> None:
    data = told(out, exit_code=code, status="built", reason="logits: SQNR 3 dB", timing=[])
    returned, made = add(out, data)
    (chosen,) = made.target("tensorrt").candidates
    check = chosen.checks[-1]
    assert (check.state, returned) == (state, exit_code)
    assert "logits: SQNR 3 dB" in check.text
    assert chosen.timings == []


def test_times_of_this_machine_stay(out: Path) -> None:
    made = load_record(out)
    one = made.targets[0]
    timed = candidate("int8", 0.0, 2.0).timings
    kept = dataclasses.replace(one.candidates[0], timings=timed)
    made = dataclasses.replace(made, targets=[dataclasses.replace(one, candidates=[kept])])
    (out.parent / "r.json").write_text(json.dumps(told(out)))
    after = add_result(made, out, read_result(out.parent / "r.json")).targets[0].candidates[0]
    assert [(t.batch, t.source) for t in after.timings] == [
        (1, "timed"),
        (16, "timed"),
        (4, "reported"),
    ]
    assert after.checks[1].state == "not_judged", "no gate is judged on a mixture"


def test_other_results_are_refused(out: Path, tmp_path: Path) -> None:
    before = (out / "run.json").read_bytes()
    for data, kind, words in (
        (told(out, bundle="0" * 64), UsageError, "another bundle"),
        (told(out, schema=2), BadArtifact, "another schema"),
        (told(out, status="perfect"), BadArtifact, "status"),
        ([], BadArtifact, "not the results"),
    ):
        (tmp_path / "r.json").write_text(json.dumps(data))
        with pytest.raises(kind, match=words):
            add_result(load_record(out), out, read_result(tmp_path / "r.json"))
        assert main(["report", str(out), "--add", str(tmp_path / "r.json")]) == kind("").exit_code
    with pytest.raises(UsageError, match="no such file"):
        read_result(tmp_path / "none.json")
    (out / "tensorrt" / "artifact.json").write_text(
        (out / "tensorrt" / "artifact.json").read_text().replace('"batch"', '"n"')
    )
    (tmp_path / "r.json").write_text(json.dumps(told(out)))
    with pytest.raises(BadArtifact, match="not the bundle of this run"):
        add_result(load_record(out), out, read_result(tmp_path / "r.json"))
    assert (out / "run.json").read_bytes() == before
