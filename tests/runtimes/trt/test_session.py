"""`rt_tensorrt` on a machine that only seems to have a GPU, each time in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from runtimes import rt_tensorrt
from runtimes.base import load_runtime
from runtimes.errors import MissingTool, RuntimeUnavailable
from runtimes.types import Artifact, TensorSpec
from tests import models
from tests.layers.tree import ROOT
from tests.runtimes.trt import board

SCRIPT = """
import json, sys
import numpy as np
from pathlib import Path
from runtimes import rt_tensorrt
from runtimes.errors import CompressError
from runtimes.types import Artifact
artifact = Artifact.load(Path(sys.argv[1]))
def answer(**told): print(json.dumps(told))
try:
    exec(sys.argv[2])
except CompressError as error:
    answer(kind=type(error).__name__, code=error.exit_code, text=error.text())
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A bundle with its engine, as an artifact."""
    root = board.write_bundle(tmp_path_factory.mktemp("session") / "tensorrt")
    inputs = [TensorSpec("image", "float32", tuple(board.SHAPE))]
    made = Artifact.write(
        root, "tensorrt", "model.onnx", inputs, [TensorSpec("logits", "float32", ("batch", 10))]
    )
    command = [sys.executable, "build_engine.py", "--seconds", "0"]
    subprocess.run(command, cwd=root, env=board.environment(), check=True, capture_output=True)
    return made


def session(root: Path, code: str, **settings: str) -> dict[str, Any]:
    env = board.environment(**settings)
    env["PYTHONPATH"] = f"{ROOT}:{env['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root), code],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_models_own_numbers(artifact: Artifact, tmp_path: Path) -> None:
    feeds = models.feeds(onnx.load(artifact.path), 5, seed=1)
    np.savez(tmp_path / "feeds.npz", **feeds)
    ledger = tmp_path / "ledger"
    code = f"""
feeds = dict(np.load({str(tmp_path / "feeds.npz")!r}))
with rt_tensorrt.open_session(artifact) as session:
    call = session.bind(feeds)
    call()
    first = call.fetch()["logits"]
    session.run({{"image": feeds["image"][:1] * 0}})
    call()
    again = call.fetch()["logits"]
    answer(same=bool((first == again).all()), values=first.tolist(), settings=session.settings,
           versions=rt_tensorrt.versions(), missing=rt_tensorrt.missing())
"""
    told = session(artifact.root, code, FAKE_LEDGER=str(ledger))
    expected = models.run(onnx.load(artifact.path), feeds)["logits"]
    np.testing.assert_allclose(told["values"], expected, rtol=0, atol=1e-5)
    assert told["same"]
    assert told["settings"]["device"] == "Fake Orin (SM 87)"
    assert told["versions"]["tensorrt"] == "10.3.0"
    assert told["missing"] is None
    assert set(ledger.read_text().splitlines()) == {"0 live, 0 contexts"}


def test_layers_with_times(artifact: Artifact) -> None:
    code = """
feeds = {"image": np.zeros((1, 1, 28, 28), np.float32)}
rows = rt_tensorrt.layer_precisions(artifact, feeds=feeds)
answer(rows=[[r.layer, r.precision, list(r.layers), list(r.beside)] for r in rows])
"""
    rows = session(artifact.root, code)["rows"]
    assert len(rows) == 10
    assert ["stem + relu", "int8", ["stem", "relu"], []] in rows
    assert any(beside for *_, beside in rows)


REFUSED = {
    "no driver": ({"LD_LIBRARY_PATH": ""}, "NVIDIA GPU"),
    "another GPU": ({"FAKE_SM": "86"}, "another GPU"),
    "another version": ({"FAKE_TENSORRT": "11.4"}, "another TensorRT"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_machine_that_the_engine_is_not_for(what: str, artifact: Artifact) -> None:
    settings, words = REFUSED[what]
    told = session(artifact.root, "rt_tensorrt.open_session(artifact)", **settings)
    assert told["code"] == 4, told
    assert words in told["text"]


def test_what_it_is_asked_wrongly(artifact: Artifact) -> None:
    """In one process: starting one takes longer than a refusal."""
    code = """
large = {"image": np.zeros((9, 1, 28, 28), np.float32)}
told = {}
for what, asked in {
    "device": lambda: rt_tensorrt.open_session(artifact, device="NPU"),
    "gpu": lambda: rt_tensorrt.open_session(artifact, device="GPU:3"),
    "back end": lambda: rt_tensorrt.open_session(artifact, back_end="trt"),
    "library": lambda: rt_tensorrt.open_session(artifact, back_end="tensorrt_lean"),
    "profile": lambda: rt_tensorrt.open_session(artifact).bind(large),
}.items():
    try:
        asked()
    except Exception as error:
        told[what] = [error.exit_code, str(error)]
answer(**told)
"""
    told = session(artifact.root, code)
    for what, exit_code, words in (
        ("device", 2, "GPU or GPU:1"),
        ("gpu", 4, "no GPU 3"),
        ("back end", 2, "unknown back end"),
        ("library", 4, "not installed"),
        ("profile", 6, "profile does not hold this shape"),
    ):
        assert told[what][0] == exit_code, told
        assert words in told[what][1]


@pytest.mark.parametrize("what", ["no engine", "damaged", "other numbers"])
def test_an_engine_that_will_not_do(what: str, artifact: Artifact, tmp_path: Path) -> None:
    root = Path(shutil.copytree(artifact.root, tmp_path / "copy"))
    facts = json.loads((root / "engine.json").read_text())
    if what == "no engine":
        (root / "model.engine").unlink()
    elif what == "damaged":
        (root / "model.engine").write_bytes(b"x")
    else:
        (root / "engine.json").write_text(json.dumps(facts | {"exit_code": 7, "reason": "SQNR 3"}))
    told = session(root, "rt_tensorrt.open_session(artifact)")
    kind, words = {
        "no engine": ("RuntimeUnavailable", "python build_engine.py"),
        "damaged": ("BadArtifact", "damaged"),
        "other numbers": ("BadArtifact", "SQNR 3"),
    }[what]
    assert told["kind"] == kind
    assert words in told["text"]


def test_the_board_s_own_verb_runs_it(artifact: Artifact, tmp_path: Path) -> None:
    feeds = models.feeds(onnx.load(artifact.path), 2)
    np.savez(tmp_path / "x.npz", **feeds)
    env = board.environment()
    env["PYTHONPATH"] = f"{ROOT}:{env['PYTHONPATH']}"
    arguments = ["run", str(artifact.root), "--feeds", str(tmp_path / "x.npz"), "--device", "GPU"]
    done = subprocess.run(
        [sys.executable, "-m", "runtimes", *arguments, "--out", str(tmp_path / "y.npz")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["versions"]["tensorrt"] == "10.3.0"
    made = np.load(tmp_path / "y.npz")["logits"]
    expected = models.run(onnx.load(artifact.path), feeds)["logits"]
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)


def test_without_a_library_or_a_gpu(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "tensorrt" in load_runtime("tensorrt").FORMATS
    monkeypatch.setattr(rt_tensorrt, "_installed", list)
    assert "pip install" in (rt_tensorrt.missing() or "")
    with pytest.raises(MissingTool, match="pip install"):
        rt_tensorrt.open_session(artifact)
    monkeypatch.setattr(rt_tensorrt, "_installed", lambda: ["tensorrt"])
    monkeypatch.setattr(rt_tensorrt, "_why_no_gpu", lambda: "no NVIDIA driver: gone")
    assert rt_tensorrt.missing() == "TensorRT needs an NVIDIA GPU: no NVIDIA driver: gone"
    with pytest.raises(RuntimeUnavailable, match="carry the bundle to the board"):
        rt_tensorrt.versions()


def test_the_lean_runtime_loads_compatible_engines(artifact: Artifact, tmp_path: Path) -> None:
    root = Path(shutil.copytree(artifact.root, tmp_path / "copy"))
    lean = tmp_path / "lean" / "tensorrt_lean.py"
    lean.parent.mkdir()
    lean.write_text("from tensorrt import *\nfrom tensorrt import __version__\ndel Builder\n")
    code = f"""
sys.path.insert(0, {str(lean.parent)!r})
with rt_tensorrt.open_session(artifact, back_end="tensorrt_lean") as session:
    made = session.run({{"image": np.zeros((2, 1, 28, 28), np.float32)}})["logits"]
    answer(shape=made.shape, library=session.settings["library"])
"""
    assert "another library" in session(root, code)["text"]
    facts = json.loads((root / "engine.json").read_text())
    facts["engine"]["version_compatible"] = True
    (root / "engine.json").write_text(json.dumps(facts))
    assert session(root, code) == {"shape": [2, 10], "library": "tensorrt_lean 10.3.0"}


@pytest.mark.parametrize(
    ("sms", "told"), [([86, 87], "tensorrt_rtx 10.3.0"), ([86, 89], "compiled for another GPU")]
)
def test_a_plan_made_ahead_runs_on_the_cards_it_names(
    sms: list[int], told: str, artifact: Artifact, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(artifact.root, tmp_path / "copy"))
    (root / "model.engine").rename(root / "model.rtx.plan")
    (root / "engine.json").unlink()
    plan = {"file": "model.rtx.plan", "version": "10.3.0", "compute_capabilities": sms}
    Artifact.write(
        root, "tensorrt_rtx", artifact.entry, artifact.inputs, artifact.outputs, {"plan": plan}
    )
    rtx = tmp_path / "rtx" / "tensorrt_rtx.py"
    rtx.parent.mkdir()
    rtx.write_text("from tensorrt import *\nfrom tensorrt import __version__\n")
    code = f"""
sys.path.insert(0, {str(rtx.parent)!r})
with rt_tensorrt.open_session(artifact) as session:
    session.run({{"image": np.zeros((2, 1, 28, 28), np.float32)}})
    answer(text=session.settings["library"])
"""
    assert told in session(root, code)["text"]
