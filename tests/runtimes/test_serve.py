"""The protocol: framed, deaf to noise, and every mistake is an answer."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtimes.arrays import read_arrays, write_arrays
from runtimes.errors import UsageError
from runtimes.serve import MARK, read_feeds, serve, write_feeds
from tests import models
from tests.runtimes.artifacts import artifact_of


def asked(*requests: dict | str) -> list[dict]:
    """Answers of an in-process server to a list of requests."""
    lines = [r if isinstance(r, str) else json.dumps(r) for r in requests]
    answers = io.StringIO()
    serve(io.StringIO("\n".join(lines) + "\n"), answers)
    assert all(line.startswith(MARK) for line in answers.getvalue().splitlines())
    return [json.loads(line[len(MARK) :]) for line in answers.getvalue().splitlines()]


def test_a_whole_conversation(tmp_path: Path) -> None:
    artifact = artifact_of(models.mlp(), tmp_path / "m")
    feeds = {b: [models.feeds(models.mlp(), b, s) for s in (0, 1)] for b in (1, 4)}
    write_arrays(tmp_path / "f.npz", write_feeds(feeds))
    plan = {"warmup_ns": 1, "warmup_iterations": 2, "warmup_slice_ns": 1, "warmup_cap_ns": 10**7}
    hello, load, bind, warm, block, status, bye = asked(
        {"op": "hello", "runtime": "onnxruntime"},
        {"op": "load", "artifact": str(artifact.root), "threads": 1, "device": "CPU"},
        {"op": "bind", "feeds": str(tmp_path / "f.npz"), "batch": 4},
        {"op": "warm_up", "batch": 4, "plan": plan},
        {"op": "block", "batch": 4, "ns": 1, "iterations": 7},
        {"op": "status"},
        {"op": "quit"},
    )
    assert "onnxruntime" in hello["versions"]
    assert load["cold_load_ns"] > 0
    assert bind == {"bound": 2}
    assert warm["first_ns"] > 0
    assert len(block["samples_ns"]) == 7
    assert status["peak_rss_bytes"] > 1 << 20
    assert bye == {"quit": True}


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ("{not json", "no JSON"),
        ({"op": "format_disk"}, "unknown request"),
        ({"op": "close"}, "unknown request"),
        ({"op": "hello", "runtime": "onnxrutnime"}, "unknown runtime"),
        ({"op": "bind", "feeds": "x.npz", "batch": 1}, "no model is loaded"),
        ({"op": "block", "batch": 3, "ns": 1, "iterations": 1}, "no feeds of batch 3"),
    ],
)
def test_mistakes_are_answers(request_: dict | str, text: str) -> None:
    failed, still_there = asked(request_, {"op": "status"})
    assert text in failed["error"]["message"]
    assert failed["error"]["exit_code"] == 2
    assert "error" not in still_there


def test_noise_on_every_stream_does_no_harm(tmp_path: Path) -> None:
    noisy = (
        "import os, sys; from runtimes import serve, rt_onnxruntime as rt; "
        "rt.versions = lambda: "
        "(print('loading'), os.write(1, b'raw\\n'), sys.stdin.read(), {})[-1];"
        "print('motd'); serve.serve(*serve.private_streams())"
    )
    requests = '{"op": "hello", "runtime": "onnxruntime"}\n{"op": "quit"}\n'
    done = subprocess.run(
        [sys.executable, "-c", noisy], input=requests, capture_output=True, text=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "motd"
    assert [line.startswith(MARK) for line in lines[1:]] == [True, True]
    assert "raw" in done.stderr
    assert "loading" in done.stderr


def test_any_tensor_name_survives_the_feeds_file(tmp_path: Path) -> None:
    names = ("file", "a/b:0", "ü", "args")
    feeds = {2: [{name: np.full((2, 3), i) for i, name in enumerate(names)}]}
    write_arrays(tmp_path / "f.npz", write_feeds(feeds))
    (found,) = read_feeds(tmp_path / "f.npz", 2)
    assert {name: int(found[name][0, 0]) for name in names} == dict(
        zip(names, range(4), strict=True)
    )


def test_arrays_are_reproducible_and_hold_no_objects(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", {"x": np.arange(3), "y": np.float32(2)})
    write_arrays(tmp_path / "b.npz", {"y": np.float32(2), "x": np.arange(3)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert read_arrays(tmp_path / "a.npz")["y"].shape == ()
    np.savez(tmp_path / "evil.npz", x=np.array([object()]))
    with pytest.raises(UsageError, match="no Python objects"):
        read_arrays(tmp_path / "evil.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_files_that_are_no_arrays(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.npz"):
        read_arrays(tmp_path / "x.npz")
