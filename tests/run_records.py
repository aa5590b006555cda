"""Realistic run records, built by code, for every test of the reports."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from compressor.result import (
    Candidate,
    Check,
    Comparison,
    DataRecord,
    Failure,
    LayerRow,
    LedgerRow,
    Reference,
    RunRecord,
    Score,
    State,
    StepRecord,
    TargetResult,
    Timing,
)

N = 10_000
FP32_BYTES = 2_833_412
FP32_MS = {1: 1.234, 16: 17.93}


def timing(batch: int, p50: float, ratio: float | None, **extra: Any) -> Timing:
    """Latency `p50` ms with a plausible tail, `ratio` times as fast as the twin."""
    # 101 evenly spaced quantiles, as the benchmark keeps them.
    values = [p50 * (0.955 + 0.0009 * i + 0.4 * math.exp((i - 100) / 3)) for i in range(101)]
    made = Timing(
        batch=batch,
        threads=1,
        source="timed",
        p50_ms=p50,
        p50_interval_ms=(p50 * 0.988, p50 * 1.012),
        p90_ms=values[90],
        p99_ms=values[99],
        p99_upper_ms=values[100],
        min_ms=values[0],
        n=4000 // batch,
        rounds=5,
        speedup=ratio,
        speedup_interval=None if ratio is None else (ratio * 0.979, ratio * 1.021),
        speedup_over=None if ratio is None else "twin",
        cold_load_ms=38.0,
        peak_rss_bytes=94_371_840,
        histogram_ms=[round(v, 5) for v in values],
    )
    return dataclasses.replace(made, **extra)


LAYERS = [
    "stem.conv",
    *(f"stage{s}.{b}.conv{c}" for s in (1, 2, 3) for b in (0, 1) for c in (1, 2)),
    "stage2.0.down",
    "stage3.0.down",
]


def layers(engine: str, achieved: str = "int8") -> list[LayerRow]:
    """The fashion network's layers; the head and the softmax stay float."""
    rows = [
        LayerRow(name, "Conv", achieved, achieved, 3000 + 900 * i, 9000 + 2100 * (i % 5))
        for i, name in enumerate(LAYERS)
    ]
    rows[3] = dataclasses.replace(
        rows[3],
        achieved="float32",
        time_ns=61_000,
        reason=f"{engine} has no INT8 kernel for a convolution with 20 groups",
    )
    pool = LayerRow("head.pool", "GlobalAveragePool", achieved, achieved, 0, 2100)
    kept = "kept float by the recipe (keep.float: head.*)"
    head = LayerRow("head.fc", "Gemm", "float32", "float32", 5120, 4100, kept)
    return [*rows, pool, head]


SCALES_W4, SCALES_W8 = ("scales", 11_620, 14), ("scales", 5_810, 14)
HEAD, BIASES = ("weights float", 5_120, 1), ("biases", 6_800, 15)
BYTES: dict[str, list[tuple[Any, ...]]] = {
    "twin": [("weights float", 2_802_176, 15), ("biases", 9_344, 15), ("graph", 21_892)],
    "int8-w4": [("weights int4", 138_240, 14), HEAD, SCALES_W4, BIASES, ("graph", 40_312)],
    "int8": [("weights int8", 276_480, 14), HEAD, SCALES_W8, BIASES, ("graph", 36_190)],
    "half": [("weights half", 556_032, 15), BIASES, ("graph", 22_004)],
}
LEDGER = {name: [LedgerRow(*row) for row in rows] for name, rows in BYTES.items()}


def candidate(name: str, drop: float, ratio: float | None, **extra: Any) -> Candidate:
    """A candidate of that rung, or the twin, on ONNX Runtime."""
    twin = name == "twin"
    ledger = LEDGER[name]
    ratio16 = None if ratio is None else ratio * 1.31
    timings = [
        timing(1, FP32_MS[1] / (ratio or 1), ratio),
        timing(16, FP32_MS[16] / (ratio16 or 1), ratio16),
    ]
    made = Candidate(
        name=name,
        role="twin" if twin else "candidate",
        format="onnxruntime",
        path=f"onnxruntime/{name}",
        digest=("%02x" % (len(name) * 7)) * 32,
        size_bytes=sum(row.size_bytes for row in ledger),
        package_bytes=int(sum(row.size_bytes for row in ledger) * (0.93 if twin else 0.84)),
        steps=["to_onnx"] if twin else ["prune_channels", "recover", "to_onnx", "quantize_static"],
        score=Score("top1", 0.9287 - drop, n=N, engine="onnxruntime 1.31.1"),
        comparison=Comparison(
            drop=drop,
            interval=(drop - 0.0019, drop + 0.0019),
            relative_drop=drop / 0.9287,
            method="Bonett-Price, paired, one-sided 95 %",
            flip_rate=0.0 if twin else 0.0264,
            agreement=1.0 if twin else 0.9761,
            sqnr_db=132.0 if twin else 21.4,
            n=N,
        ),
        timings=timings,
        ledger=ledger,
        layers=layers(
            "ONNX Runtime", "float32" if twin else "float16" if name == "half" else "int8"
        ),
        state="pass",
        parameters=700_554 if twin else 286_120,
        macs=41_200_000 if twin else 15_240_000,
    )
    return dataclasses.replace(made, **extra)


def checks(state: State = "pass") -> list[Check]:
    """Four gates; the size gate takes `state`."""
    size = {
        "pass": Check(
            "size_reduction>=90%", "pass", "92.9 % smaller than the original", 0.929, None, 0.9
        ),
        "fail": Check(
            "size_reduction>=95%",
            "fail",
            "92.9 % smaller, the gate asks for 95 %",
            0.929,
            None,
            0.95,
        ),
        "inconclusive": Check(
            "accuracy_drop<=0.2%",
            "inconclusive",
            "drop 0.30 points, at most 0.49 with 95 % confidence: 61,300 samples would decide it",
            0.003,
            (0.0011, 0.0049),
            0.002,
            61_300,
        ),
        "not_judged": Check(
            "memory<=64MB",
            "not_judged",
            "the engine does not report its memory here",
            None,
            None,
            64e6,
        ),
    }
    return [
        Check(
            "accuracy_drop<=1%",
            "pass",
            "drop 0.30 points, at most 0.49 with 95 % confidence",
            0.003,
            (0.0011, 0.0049),
            0.01,
        ),
        size[state],
        Check(
            "speedup@1>=2.5",
            "pass",
            "at least 2.87x as fast as the FP32 twin at batch 1",
            2.93,
            (2.87, 2.99),
            2.5,
        ),
        Check(
            "speedup@16>=3.5",
            "pass",
            "at least 3.76x as fast as the FP32 twin at batch 16",
            3.84,
            (3.76, 3.92),
            3.5,
        ),
        Check(
            "p99@16<=8ms",
            "pass",
            "p99 6.22 ms (≤ 6.75 ms at 95 %), limit 8 ms: pass",
            6.22,
            (6.22, 6.75),
            8.0,
        ),
    ]


STEPS = [
    StepRecord(
        "prune_channels",
        None,
        None,
        "a" * 64,
        "ran",
        6.2,
        "0" * 64,
        "1" * 64,
        1_151_200,
        {"keep": {"macs": "37%"}},
        {"torch-pruning": "1.6.1"},
        ["channels 64 → 40 in stage3"],
    ),
    StepRecord(
        "recover",
        None,
        None,
        "b" * 64,
        "ran",
        48.1,
        "1" * 64,
        "2" * 64,
        1_151_200,
        {"epochs": 3},
        {"torch": "2.13.0"},
    ),
    StepRecord(
        "to_onnx",
        None,
        None,
        "c" * 64,
        "hit",
        0.0,
        "2" * 64,
        "3" * 64,
        1_160_004,
        {},
        {"torch": "2.13.0", "onnx": "1.23.2"},
    ),
    StepRecord(
        "quantize_static",
        "onnxruntime",
        "int8-w4",
        "d" * 64,
        "ran",
        9.7,
        "3" * 64,
        "4" * 64,
        331_020,
        {"samples": 512},
        {"onnxruntime": "1.31.1"},
    ),
    StepRecord(
        "quantize_weights",
        "onnxruntime",
        "int8-w4",
        "e" * 64,
        "ran",
        1.4,
        "4" * 64,
        "5" * 64,
        202_092,
        {"bits": 4},
        {},
    ),
]

RECIPE = {
    "schema": 1,
    "model": {"source": "fashion_resnet:build", "weights": "resnet.safetensors"},
    "data": {"calibration": "fashion_data:calibration", "evaluation": "fashion_data:evaluation"},
    "metric": "top1",
    "keep": {"float": ["head.*"]},
    "steps": [{"prune_channels": {"keep": {"macs": "37%"}}}, {"recover": {"epochs": 3}}],
    "targets": {"onnxruntime": {}, "openvino": {}},
    "gates": ["accuracy_drop<=1%", "size_reduction>=90%", "speedup@1>=2.5", "speedup@16>=3.5"],
}
HOST = {
    "cpu": "Intel Xeon (Cascade Lake)",
    "isa": ["avx2", "avx512_vnni"],
    "cores": 2,
    "os": "Debian GNU/Linux 12",
    "python": "3.11.2",
    "governor": "unknown",
}


def target(name: str = "onnxruntime", state: State = "pass", **extra: Any) -> TargetResult:
    """A target that tried three rungs beside its twin."""
    best = candidate("int8-w4", 0.0030, 2.93, checks=checks(state), state=state)
    int8 = candidate("int8", 0.0024, 2.95, checks=checks(), digest="ab" * 32)
    half = candidate(
        "half", 0.0008, 1.62, state="fail", digest="cd" * 32, notes=["not tried further"]
    )
    exit_code = {"pass": 0, "fail": 1, "inconclusive": 3, "not_judged": 0}[state]
    made = TargetResult(
        name=name,
        state=state,
        exit_code=exit_code,
        shipped="twin" if state == "fail" else "int8-w4",
        reason={
            "pass": "int8-w4 is the first candidate of the ladder that passed every gate",
            "fail": "no candidate passed every gate; the twin is shipped unchanged",
            "inconclusive": "int8-w4 is shipped, marked inconclusive: a gate could not be decided",
            "not_judged": "int8-w4 passed every gate that could be judged here",
        }[state],
        runtime=name,
        device="CPU",
        package=f"packages/{name}.tar.gz",
        versions={name: "1.31.1" if name == "onnxruntime" else "2026.4.1", "numpy": "2.4.6"},
        candidates=[best, int8, half, candidate("twin", 0.0, None)],
    )
    return dataclasses.replace(made, **extra)


def broken_target(name: str = "openvino") -> TargetResult:
    """A target whose converter gave up."""
    failure = Failure("BuildFailed", "node stage3.1.add: operation type is not supported", 5)
    return TargetResult(name, "not_judged", 5, failure=failure, runtime=name, device="CPU")


def record(*targets: TargetResult, **extra: Any) -> RunRecord:
    """A run over `targets` (default: one passing target)."""
    chosen = targets or (target(),)
    exit_code = max((t.exit_code for t in chosen), key=[0, 3, 1, 4, 5, 6, 7, 2, 70].index)
    states = [t.state for t in chosen]
    order: list[State] = ["fail", "inconclusive", "not_judged", "pass"]
    made = RunRecord(
        tool={"name": "edge-compressor", "version": "0.1.0", "python": "3.11.2"},
        started_utc="2026-11-22T09:30:00Z",
        seconds=184.6,
        command="compress run examples/01_image_classifier/recipe.yaml -o out",
        recipe=RECIPE,
        host=HOST,
        reference=Reference(
            "fashion_resnet:build",
            "module",
            "7f" * 32,
            FP32_BYTES,
            "FP32 ONNX of the untouched module",
            ["image float32[batch, 1, 28, 28]"],
            ["logits float32[batch, 10]"],
            700_554,
            Score("top1", 0.9287, n=N, engine="onnxruntime 1.31.1"),
            41_200_000,
        ),
        exit_code=exit_code,
        state=next(s for s in order if s in states),
        seed=0,
        data=[
            DataRecord("calibration", 512, "c1" * 32, "Fashion-MNIST training images 0–511"),
            DataRecord("training", 54_000, "7a" * 32, "Fashion-MNIST training images"),
            DataRecord("evaluation", N, "e0" * 32, "Fashion-MNIST test images"),
        ],
        steps=STEPS,
        targets=list(chosen),
    )
    return dataclasses.replace(made, **extra)


def every_kind() -> dict[str, RunRecord]:
    """One record of each outcome, by name."""
    warning = "evaluation: 10,000 samples cannot decide accuracy_drop<=0.2%"
    long = [
        LayerRow(
            f"block{i:03}.conv",
            "Conv",
            "int8",
            "int8" if i % 7 else "float32",
            4096,
            9000,
            "" if i % 7 else "input is not quantized: shared with a float branch",
        )
        for i in range(700)
    ]
    big = target()
    big = dataclasses.replace(
        big, candidates=[dataclasses.replace(big.candidates[0], layers=long), *big.candidates[1:]]
    )
    return {
        "pass": record(),
        "fail": record(target(state="fail")),
        "inconclusive": record(target(state="inconclusive"), warnings=[warning]),
        "not_judged": record(target(state="not_judged")),
        "error": record(target(), broken_target()),
        "two": record(target(), target("openvino", package="packages/openvino.tar.gz")),
        "mixed": record(target(), target("openvino", "fail"), warnings=[warning]),
        "long": record(big),
    }
