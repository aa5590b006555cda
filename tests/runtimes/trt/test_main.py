"""The whole command on a machine that only seems to have a GPU: files, results, exit codes."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from compressor.from_board import read_result
from runtimes.trt.main import main
from tests.runtimes.trt import board

EVERY_LAYER = {"int8": 5, "float16": 0, "float32": 0, "reformats": 5, "on_dla": 0}
EVERY_LAYER |= {"fell_back": [], "not_found": []}
BUILT = {"model.engine", "engine.json", "timing.cache"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return board.write_bundle(tmp_path_factory.mktemp("bundle") / "given")


@pytest.fixture(scope="module")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its engine, made once."""
    root = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(bundle, root)
    with pytest.MonkeyPatch.context() as patch:
        assert run(root, patch)["exit_code"] == 0
    return root


def run(root: Path, patch: pytest.MonkeyPatch, *flags: str, **settings: str) -> dict[str, Any]:
    """The command in this process (its children are real), and what it wrote of it."""
    for name, value in board.environment(**settings).items():
        patch.setenv(name, value)
    out = root.parent / f"{root.name}.r.json"
    out.unlink(missing_ok=True)
    timing = [] if "--seconds" in flags else ["--seconds", "0"]
    code = main([str(root), "--result-json", str(out), *timing, *flags])
    result = json.loads(out.read_text())
    assert result["exit_code"] == code
    assert not [p.name for p in root.iterdir() if p.name.startswith(".")], "something half-written"
    return result


def copy(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "bundle"))


def test_the_bundle_alone_on_a_board(bundle: Path, tmp_path: Path) -> None:
    root, ledger = copy(bundle, tmp_path), tmp_path / "ledger"
    flags = ["--result-json", "r.json", "--seconds", "0.02"]
    done = subprocess.run(
        [sys.executable, "build_engine.py", *flags],
        cwd=root,
        env=board.environment(FAKE_LEDGER=str(ledger)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "validated, exit 0" in done.stdout
    assert {path.name for path in root.iterdir()} >= BUILT
    assert not (root / "trt" / "__pycache__").exists()
    result = json.loads((root / "r.json").read_text())
    assert json.loads((root / "engine.json").read_text()) == result
    assert read_result(root / "r.json").timing[1].graph  # the host side reads it
    assert result["bundle"] == board.digest(root / "model.onnx")
    assert result["status"] == "validated"
    assert result["versions"]["tensorrt"] == "10.3.0"
    assert (result["device"]["name"], result["device"]["sm"]) == ("Fake Orin", 87)
    assert result["engine"]["sha256"] == board.digest(root / "model.engine")
    assert result["layers"] == EVERY_LAYER
    assert result["numeric"]["logits"]["sqnr_db"] > 100  # the same graph, another optimisation
    assert [(row["graph"], row["batch"]) for row in result["timing"]] == [(False, 4), (True, 4)]
    assert all(0 < row["min_ms"] <= row["p50_ms"] <= row["p99_ms"] for row in result["timing"])
    # Buffers of a batch of 4: images up, logits down.
    assert result["memory"]["gpu_used_bytes"] == 4 * (28 * 28 + 10) * 4
    slowest = [row["ms"] for row in result["slowest"][:5]]
    assert slowest == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.1])
    # Every process gives back what it took: memory, streams, events, graphs, contexts.
    told = set(ledger.read_text().splitlines())
    assert told == {"0 live, 0 contexts", "graphs were launched"}


@pytest.mark.parametrize("version", ["8.6", "11.4"])
def test_other_versions(
    version: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--try-anyway"] if version == "8.6" else []
    result = run(copy(bundle, tmp_path), monkeypatch, *flags, FAKE_TENSORRT=version)
    assert result["status"] == "validated"
    assert result["layers"]["int8"] == 5
    assert any("tried anyway" in note for note in result["notes"]) == (version == "8.6")


def quantized_away() -> onnx.ModelProto:
    """A model with an operator that TensorRT's parser does not have."""
    names = ["x", "s", "z", "w", "s", "z", "s", "z"]
    node = helper.make_node("QLinearConv", names, ["y"], name="bad.conv")
    one = helper.make_tensor("s", TensorProto.FLOAT, [], [1.0])
    zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
    weight = helper.make_tensor("w", TensorProto.INT8, [1, 1, 1, 1], [1])
    value = [helper.make_tensor_value_info(n, TensorProto.INT8, ["batch", 1, 28, 28]) for n in "xy"]
    graph = helper.make_graph([node], "g", value[:1], value[1:], [one, zero, weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def spoil(root: Path, how: str) -> None:
    described = json.loads((root / "trt.json").read_text())
    if how == "digest":
        (root / "model.onnx").write_bytes((root / "model.onnx").read_bytes() + b" ")
    elif how == "reference":
        (root / "reference.npz").unlink()
    elif how == "missing":
        (root / "trt.json").unlink()
    elif how == "json":
        (root / "trt.json").write_text("{")
    elif how == "schema":
        (root / "trt.json").write_text(json.dumps(described | {"schema": 2}))
    elif how == "precision":
        (root / "trt.json").write_text(json.dumps(described | {"precision": "int3"}))
    elif how == "profile":
        described["inputs"][0]["max"] = None
        (root / "trt.json").write_text(json.dumps(described))
    elif how == "parse":
        onnx.save(quantized_away(), root / "model.onnx")
        described["sha256"]["model.onnx"] = board.digest(root / "model.onnx")
        (root / "trt.json").write_text(json.dumps(described))


BAD = {
    # what: (spoiled how, flags, machine, exit code, words of the reason)
    "no trt.json": ("missing", [], {}, 2, "no trt.json"),
    "damaged trt.json": ("json", [], {}, 7, "damaged"),
    "other schema": ("schema", [], {}, 7, "another schema"),
    "unknown precision": ("precision", [], {}, 7, "precision"),
    "other digest": ("digest", [], {}, 7, "changed after it was made"),
    "missing reference": ("reference", [], {}, 7, "file is missing"),
    "no driver": ("", [], {"LD_LIBRARY_PATH": "/nowhere"}, 4, "no NVIDIA driver"),
    "driver without a GPU": ("", [], {"FAKE_NO_DRIVER": "1"}, 4, "CUDA_ERROR_NO_DEVICE"),
    "no such GPU": ("", ["--gpu", "1"], {}, 4, "no GPU 1"),
    "no TensorRT": ("", [], {"PYTHONPATH": "", "PATH": ""}, 4, "No module named 'tensorrt'"),
    "old TensorRT": ("", [], {"FAKE_TENSORRT": "8.6"}, 4, "TensorRT is not one"),
    "old GPU": ("", [], {"FAKE_SM": "75"}, 4, "GPU is not one"),
    "no DLA": ("", ["--dla", "0"], {"FAKE_TENSORRT": "11.4"}, 4, "no such DLA core"),
    "little memory": ("", [], {"FAKE_FREE_MIB": "100"}, 5, "too little memory to build"),
    "memory runs out": ("", [], {"FAKE_MEMORY": "1"}, 5, "too little memory to build"),
    "no profile": ("profile", [], {}, 5, "free dimensions without a profile"),
    "refused operator": ("parse", [], {}, 5, "bad.conv (QLinearConv)"),
    "slow build": ("", ["--time-limit", "1"], {"FAKE_SLOW_S": "60"}, 5, "longer than 1 s"),
    "no engine": ("", ["--no-build"], {}, 2, "no engine yet"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(
    what: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how, flags, machine, code, words = BAD[what]
    root = copy(bundle, tmp_path)
    spoil(root, how)
    before = {path.name for path in root.iterdir()}
    result = run(root, monkeypatch, *flags, **machine)
    assert (result["exit_code"], result["status"]) == (code, "portable"), result["reason"]
    assert words in result["reason"]
    assert {path.name for path in root.iterdir()} == before


def test_other_numbers(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(copy(built, tmp_path), monkeypatch, FAKE_NOISE="0.1")
    assert (result["exit_code"], result["status"]) == (7, "built")
    assert "logits: SQNR" in result["reason"]
    assert result["numeric"]["logits"]["sqnr_db"] < 30


def test_a_layer_that_fell_back(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(copy(bundle, tmp_path), monkeypatch, FAKE_FLOAT="block.conv1")
    assert result["layers"]["fell_back"] == ["block.conv1"]
    assert (result["layers"]["int8"], result["layers"]["float32"]) == (4, 1)
    assert "block.conv1 was to run in INT8 and runs in float" in result["notes"]


def test_options_reach_the_builder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy(bundle, tmp_path)
    described = json.loads((root / "trt.json").read_text())
    described["builder"] |= {"version_compatible": True, "sparsity": True}
    (root / "trt.json").write_text(json.dumps(described))
    result = run(root, monkeypatch, "--dla", "1")
    assert result["status"] == "validated", result["reason"]
    head = json.loads((root / "model.engine").read_bytes().partition(b"\n")[0])
    assert head["flags"] == ["GPU_FALLBACK", "SPARSE_WEIGHTS", "VERSION_COMPATIBLE"]
    assert result["engine"]["version_compatible"]
    assert "0 layers run on the DLA" in result["notes"]
    # Of another version of the same major it still loads.
    result = run(root, monkeypatch, "--dla", "1", "--no-build", FAKE_TENSORRT="10.16")
    assert result["status"] == "validated", result["reason"]
    result = run(root, monkeypatch, "--dla", "1", "--no-build", FAKE_TENSORRT="11.4")
    assert "another TensorRT" in result["reason"]


def test_memory_that_a_board_shares(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Jetson the driver counts the system's cache as taken; what is available counts."""
    result = run(copy(bundle, tmp_path), monkeypatch, FAKE_FREE_MIB="100", FAKE_INTEGRATED="1")
    assert result["status"] == "validated"


def test_a_request_to_end_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    root = copy(bundle, tmp_path)
    before = {path.name for path in root.iterdir()}
    process = subprocess.Popen(
        [sys.executable, "build_engine.py", "--result-json", "../r.json"],
        cwd=root,
        env=board.environment(FAKE_SLOW_S="120"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert "Building" in process.stderr.readline()
    process.terminate()
    assert process.wait(30) == 143
    process.stderr.close()
    assert json.loads((tmp_path / "r.json").read_text())["reason"] == "interrupted"
    assert {path.name for path in root.iterdir()} == before


def test_an_engine_is_used_again(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy(built, tmp_path)
    before = (root / "model.engine").stat().st_mtime_ns
    result = run(root, monkeypatch)
    assert "the engine that was there was used" in result["notes"]
    assert (root / "model.engine").stat().st_mtime_ns == before
    result = run(root, monkeypatch, "--workspace", "64MiB")
    assert result["engine"]["builder"]["workspace_bytes"] == 64 << 20
    assert (root / "model.engine").stat().st_mtime_ns != before


OTHER = {
    "another GPU": ({"FAKE_SM": "86"}, 4, "another GPU"),
    "another version": ({"FAKE_TENSORRT": "10.16"}, 4, "another TensorRT"),
    "damaged": ({}, 7, "damaged"),
    "another model": ({}, 7, "another model"),
}


@pytest.mark.parametrize("what", OTHER)
def test_an_engine_from_elsewhere(
    what: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, code, words = OTHER[what]
    root = copy(built, tmp_path)
    if what == "damaged":
        (root / "model.engine").write_bytes((root / "model.engine").read_bytes()[:-9])
    if what == "another model":
        facts = json.loads((root / "engine.json").read_text())
        (root / "engine.json").write_text(json.dumps(facts | {"bundle": "0" * 64}))
    result = run(root, monkeypatch, "--no-build", **machine)
    assert result["exit_code"] == code
    assert words in result["reason"]
    if what == "another GPU":  # built again where that is allowed
        result = run(root, monkeypatch, **machine)
        assert result["exit_code"] == 0
        assert any(words in note for note in result["notes"])


def test_a_plan_that_the_library_refuses(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy(built, tmp_path)
    (root / "model.engine").write_bytes(b"no plan at all")
    facts = json.loads((root / "engine.json").read_text())
    facts["engine"]["sha256"] = board.digest(root / "model.engine")
    (root / "engine.json").write_text(json.dumps(facts))
    result = run(root, monkeypatch, "--no-build")
    assert result["exit_code"] == 7
    assert "the engine cannot be loaded" in result["reason"]


@pytest.mark.parametrize("version", ["100300", "110400"])
def test_through_trtexec(
    version: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, tool = copy(bundle, tmp_path), tmp_path / "trtexec"
    source = (board.HERE / "fake_trtexec.py").read_text()
    tool.write_text(f"#!{sys.executable}\n{source}")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    flags = ["--trtexec", str(tool), "--seconds", "1", "--try-anyway"]
    result = run(root, monkeypatch, *flags, PYTHONPATH="", FAKE_TRTEXEC=version)
    assert result["status"] == "validated", result["reason"]
    assert result["layers"]["int8"] == 5
    assert result["timing"][0]["source"] == "trtexec --exportTimes"
    assert result["timing"][0]["p50_ms"] == pytest.approx(0.524)  # rank 25 of 0.500 … 0.549
    assert [row["layer"] for row in result["slowest"]] == ["c", "b", "a"]
    assert {"model.engine", "engine.json", "model.layers.json"} <= {p.name for p in root.iterdir()}


def test_usage_errors_are_argparses() -> None:
    for wrong in (["--time-limit", "0"], ["--workspace", "much"], ["--batch", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
