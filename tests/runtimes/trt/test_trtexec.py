"""Command lines by version, and what the tool writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.trt import records, trtexec
from runtimes.trt.errors import TrtError

JOB = {
    "model": "m.onnx",
    "engine": "m.engine",
    "precision": "int8",
    "inputs": [
        {"name": "image", "shape": ["batch", 3]} | {"min": [1, 3], "opt": [4, 3], "max": [8, 3]},
        {"name": "scale", "shape": [1]},
    ],
    "builder": {"workspace_bytes": 256 << 20, "optimization_level": 3, "sparsity": True},
    "timing_cache": "t.cache",
}


def build(version: str, **builder: Any) -> set[str]:
    job = JOB | {"builder": JOB["builder"] | builder}  # type: ignore[operator]
    line = trtexec.build_command(Path("trtexec"), version, job, Path("l.json"))
    assert len(line) == len(set(line))
    return set(line[1:])


def bench(version: str, graph: bool) -> set[str]:
    return set(
        trtexec.bench_command(
            Path("trtexec"),
            version,
            Path("m.engine"),
            shapes={"image": (4, 3)},
            inputs={"image": Path("i.bin"), "scale": Path("s.bin")},
            graph=graph,
            seconds=2.0,
            times=Path("t.json"),
            outputs=Path("o.json"),
        )
    )


def test_build_flags_by_version() -> None:
    common = {
        "--onnx=m.onnx",
        "--device=0",
        "--saveEngine=m.engine",
        "--minShapes=image:1x3",
        "--optShapes=image:4x3",
        "--maxShapes=image:8x3",
        "--timingCacheFile=t.cache",
        "--profilingVerbosity=detailed",
        "--exportLayerInfo=l.json",
        "--sparsity=enable",
    }
    new = {"--memPoolSize=workspace:256", "--builderOptimizationLevel=3", "--skipInference"}
    old = {"--workspace=256", "--fp16", "--int8"}
    assert build("8.5.2") == common | old | {"--buildOnly"}
    assert build("8.6.1") == common | old | {"--builderOptimizationLevel=3", "--skipInference"}
    assert build("10.3.0") == common | new | {"--stronglyTyped"}
    assert build("11.4.0") == common | new
    assert {"--useDLACore=0", "--allowGPUFallback"} <= build("10.3.0", dla_core=0)
    extra = build("10.3.0", version_compatible=True, hardware_compatible=True)
    assert {"--versionCompatible", "--hardwareCompatibilityLevel=ampere+"} <= extra


@pytest.mark.parametrize("graph", [False, True])
def test_modes_are_written_out(graph: bool) -> None:
    """11.x flipped its defaults: the same modes need other flags."""
    old, new = bench("10.3.0", graph), bench("11.4.0", graph)
    for line in (old, new):
        assert ("--useCudaGraph" in line) == graph
        assert {"--useSpinWait", "--infStreams=1", "--shapes=image:4x3"} <= line
        assert "--loadInputs=image:i.bin,scale:s.bin" in line
    assert ("--noCudaGraph" in new) == (not graph)
    assert "--includeDataTransfers" in new
    assert not old & {"--noCudaGraph", "--includeDataTransfers", "--noDataTransfers"}
    assert "--streams=1" in bench("8.6.1", graph)


@pytest.mark.parametrize(
    ("digits", "version"),
    [("8502", "8.5.2"), ("8601", "8.6.1"), ("100300", "10.3.0"), ("101601", "10.16.1")],
)
def test_version_from_the_banner(digits: str, version: str) -> None:
    line = f"&&&& RUNNING TensorRT.trtexec [TensorRT v{digits}] [b26] # trtexec --help"
    assert trtexec.banner_version(line) == version
    with pytest.raises(ValueError, match="TensorRT v"):
        trtexec.banner_version("trtexec")


def test_times() -> None:
    new = {"startEnqMs": 1.0, "endEnqMs": 1.25, "startH2dMs": 1.0, "endD2hMs": 3.0, "future": 1}
    new |= {"h2dMs": 0.5, "computeMs": 1.5, "d2hMs": 0.25, "latencyMs": 2.25, "endToEndMs": 4.0}
    found = records.read_times(json.dumps([new, new]))
    assert (found["h2d_ms"], found["p50_ms"], found["d2h_ms"]) == (0.5, 1.5, 0.25)
    assert found["enqueue_ms"] == 0.25
    assert (found["latency_p50_ms"], found["samples"]) == (2.25, 2)
    old = {"startInMs": 1.0, "endOutMs": 3.0, "inMs": 0.5, "computeMs": 1.5, "outMs": 0.25}
    assert records.read_times(json.dumps([old]))["h2d_ms"] == 0.5
    for wrong in ("[]", "{", '[{"h2dMs": 1}]'):
        with pytest.raises(TrtError, match="exportTimes"):
            records.read_times(wrong)


def test_profile_outputs_and_errors() -> None:
    rows = [{"count": 3}, {"name": "conv", "timeMs": 3.0, "averageMs": 1.0, "medianMs": 0.9}]
    assert records.read_profile(json.dumps(rows)) == [("conv", 1.0)]
    made = [{"name": "y", "dimensions": "2x3", "values": [1, 2, 3, 4, 5, 6]}]
    (y,) = records.read_outputs(json.dumps(made), {"y": "float16"}).values()
    np.testing.assert_array_equal(y, np.arange(1, 7, dtype=np.float16).reshape(2, 3))
    log = "[I] fine\n[E] first\n[W] hm\n[E] second\n"
    assert records.errors_in(log) == "[E] first\n  [E] second"
