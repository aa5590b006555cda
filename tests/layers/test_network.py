"""A run opens no connection: every Python process of it is watched by an audit hook.

An attempt is written down, not only refused: telemetry code likes to swallow its own errors.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.layers.tree import ROOT

WATCH = """
import os, sys
EVENTS = {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}
def watch(event, args):
    inside = event == "socket.connect" and isinstance(args[-1], (str, bytes))  # a local socket
    if event in EVENTS and not inside:
        with open(os.environ["WATCH_LOG"], "a") as log:
            log.write(f"{sys.argv[:3]} {event} {args}\\n")
        raise OSError(f"no network in this test: {event}")
sys.addaudithook(watch)
with open(os.environ["WATCH_LOG"] + ".watched", "a") as log:
    log.write(f"{sys.argv[:1]}\\n")
"""


@pytest.fixture
def watched(tmp_path: Path) -> dict[str, str]:
    """An environment in which every Python process reports attempts to `tmp_path/log`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "home").mkdir()
    return os.environ | {
        "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}",
        "WATCH_LOG": str(tmp_path / "log"),
        "COMPRESS_HOME": str(tmp_path / "store"),
        "HOME": str(tmp_path / "home"),
    }


def python(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, check=False
    )


def test_the_watch_sees_an_attempt(tmp_path: Path, watched: dict[str, str]) -> None:
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: pass"
    python("-c", code, env=watched)
    assert "socket." in (tmp_path / "log").read_text()


def test_importing_openvino_reports_nothing(tmp_path: Path, watched: dict[str, str]) -> None:
    pytest.importorskip("openvino", reason="needs the openvino extra")
    done = python("-c", "import runtimes, openvino, time; time.sleep(1)", env=watched)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "log").exists(), (tmp_path / "log").read_text()
    assert not (tmp_path / "home" / "intel").exists(), "a client id was made in the home folder"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_run_opens_no_connection(target: str, tmp_path: Path, watched: dict[str, str]) -> None:
    if importlib.util.find_spec(target) is None:
        pytest.skip(f"needs {target}")
    data = models.fashion_like(300)
    model = models.save(models.trained(models.convnet(), data), tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", image=data["image"][:100])
    np.savez(tmp_path / "eval.npz", **models.fashion_like(300, seed=1))
    flags = ["--target", target, "--effort", "quick", "--metric", "top1", "-q"]
    flags += ["--calibration", str(tmp_path / "calib.npz")]
    flags += ["--evaluation", str(tmp_path / "eval.npz"), "-o", str(tmp_path / "out")]
    done = python("-m", "compressor", "run", str(model), *flags, env=watched)
    assert done.returncode in (0, 1, 3), done.stderr  # the verdict is not the question here
    assert (tmp_path / "out" / "run.json").is_file()
    assert not (tmp_path / "log").exists(), (tmp_path / "log").read_text()
    assert len((tmp_path / "log.watched").read_text().splitlines()) > 2, (
        "timing has its own processes"
    )
