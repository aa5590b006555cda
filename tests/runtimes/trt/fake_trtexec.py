"""Stands for `trtexec`: knows its version's flags, writes what it writes, computes for real."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

VERSION = os.environ.get("FAKE_TRTEXEC", "100300")
MAJOR = int(VERSION) // (10000 if len(VERSION) > 5 else 1000)
KNOWN = set(
    """onnx device saveEngine minShapes optShapes maxShapes shapes timingCacheFile
    profilingVerbosity exportLayerInfo skipInference loadEngine loadInputs warmUp
    duration iterations percentile
    useCudaGraph useSpinWait exportTimes exportOutput exportProfile separateProfileRun
    builderOptimizationLevel versionCompatible hardwareCompatibilityLevel sparsity useDLACore
    allowGPUFallback help""".split()
)
KNOWN |= {"workspace", "fp16", "int8", "streams"} if MAJOR < 10 else {"memPoolSize", "infStreams"}
KNOWN |= {"stronglyTyped"} if MAJOR == 10 else set()
KNOWN |= {"noCudaGraph", "noSpinWait", "includeDataTransfers"} if MAJOR >= 11 else set()


def main() -> None:
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{VERSION}] # {' '.join(sys.argv)}")
    flags = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:])
    if unknown := set(flags) - KNOWN:
        print(f"[E] Unknown option: --{sorted(unknown)[0]}")
        raise SystemExit(1)
    if "onnx" in flags:
        build(flags)
    elif "loadEngine" in flags:
        bench(flags)


def build(flags: dict[str, str]) -> None:
    import onnx

    model = onnx.load(flags["onnx"])
    if any(node.op_type == "QLinearConv" for node in model.graph.node):
        print("[E] [TRT] ModelImporter.cpp: no importer registered for op: QLinearConv")
        raise SystemExit(1)
    Path(flags["saveEngine"]).write_bytes(model.SerializeToString())
    Path(flags["timingCacheFile"]).write_bytes(b"cache")
    names = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    tensor = {"Name": "x", "Format/Datatype": "Row major linear Int8 format"}
    rows = [{"Name": n, "LayerType": "CaskConvolution", "Inputs": [tensor]} for n in names]
    Path(flags["exportLayerInfo"]).write_text(json.dumps({"Layers": rows, "Bindings": []}))


def bench(flags: dict[str, str]) -> None:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(Path(flags["loadEngine"]).read_bytes())
    name, _, path = flags["loadInputs"].partition(":")
    shape = [int(d) for d in flags["shapes"].partition(":")[2].split("x")]
    feeds = {name: np.fromfile(path, np.float32).reshape(shape)}
    made = session.run(None, feeds)
    outputs = [
        {"name": o.name, "dimensions": "x".join(map(str, v.shape)), "values": v.ravel().tolist()}
        for o, v in zip(session.get_outputs(), made, strict=True)
    ]
    Path(flags["exportOutput"]).write_text(json.dumps(outputs))
    times = [
        {"startEnqMs": i, "endEnqMs": i + 0.01, "startH2dMs": i, "endD2hMs": i + 1, "new": "key"}
        | {"h2dMs": 0.1, "computeMs": 0.5 + 0.001 * i, "d2hMs": 0.05, "latencyMs": 0.65}
        for i in range(50)
    ]
    if "exportProfile" in flags:
        assert "separateProfileRun" in flags
        rows = [{"count": 9}, *({"name": n, "averageMs": 0.1 * i} for i, n in enumerate("abc"))]
        Path(flags["exportProfile"]).write_text(json.dumps(rows))
    Path(flags["exportTimes"]).write_text(json.dumps(times))


main()
