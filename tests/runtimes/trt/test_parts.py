"""Inspector JSON, comparison, timing, facts of a board: each on samples in the vendor's shape."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.trt import board as facts
from runtimes.trt import compare, layers, power, timing
from runtimes.trt.bundle import Bundle, check_gpu, check_version, numbers
from runtimes.trt.engine_file import Here, why_not
from runtimes.trt.errors import TrtError
from runtimes.trt.files import sha256_of, write_json
from runtimes.trt.validate import energy, resized

# ── layers ───────────────────────────────────────────────────────────────────────────────────────


def tensor(layout: str, text: str) -> dict[str, Any]:
    if layout == "10.x":
        return {"Name": "t", "Dimensions": [1, 8], "Format/Datatype": f"{text} NC/32HW32"}
    return {"Name": "t", "Dimensions": [1, 8], "Format": "NC/32HW32", "Datatype": text}


def inspector(layout: str) -> str:
    def layer(name: str, kind: str, source: str, nodes: list[str]) -> dict[str, Any]:
        there = [tensor(layout, source)]
        marks = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)
        return {"Name": name, "LayerType": kind, "Inputs": there, "Outputs": there} | {
            "Metadata": marks
        }

    rows = [
        layer("Reformatting CopyNode for Input Tensor 0 to a", "Reformat", "Float", []),
        layer("a + relu", "CaskConvolution", "Int8", ["a_QuantizeLinear", "a", "relu"]),
        layer("b[0]", "CaskConvolution", "Half", ["b[0]"]),
        layer("__myl_Fc", "gemm", "Int8", ["c", "d"]),
        layer("softmax", "SoftMax", "Float", ["softmax"]),
        layer("{ForeignNode[e...f]}", "DLA", "Int8", ["e", "f"]),
    ]
    return json.dumps({"Layers": rows, "Bindings" if layout == "10.x" else "I/O Tensors": []})


@pytest.mark.parametrize("layout", ["10.x", "11.x"])
def test_layers_of_both_layouts(layout: str) -> None:
    wanted = [{"name": name, "precision": "int8"} for name in ("a", "b[0]", "c", "gone")]
    wanted.append({"name": "softmax", "precision": "float32"})
    counted = layers.count(layers.read_layers(inspector(layout)), wanted)
    assert [counted[key] for key in ("int8", "float16", "float32", "reformats")] == [3, 1, 1, 1]
    assert counted["on_dla"] == 1
    assert (counted["fell_back"], counted["not_found"]) == (["b[0]"], ["gone"])


def test_layers_without_details_decide_nothing() -> None:
    found = layers.read_layers(json.dumps({"Layers": ["conv1 + relu1", "conv2"]}))
    counted = layers.count(found, [{"name": "conv1", "precision": "int8"}])
    assert (counted["unknown"], counted["fell_back"], counted["not_found"]) == (2, [], [])
    with pytest.raises(TrtError, match="not understood"):
        layers.read_layers("nothing")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Row major linear FP32", "float32"),
        ("Row major linear FP16 format", "float16"),
        ("Channel major FP16 format where channel % 8 == 0", "float16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("BFloat16 NHWC", "bfloat16"),
        ("Row major linear FP8 format", "float8"),
        ("Int32", "integer"),
        ("Something new", "unknown"),
    ],
)
def test_precisions_by_their_names(text: str, kind: str) -> None:
    row = {"Name": "x", "LayerType": "X", "Inputs": [{"Format/Datatype": text}]}
    assert layers.read_layers(json.dumps({"Layers": [row]}))[0].precision == kind


# ── whose engine it is ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("built", "here", "refused"),
    [
        ({}, {}, ""),
        ({}, {"version": "10.3.1"}, "TensorRT"),
        ({"version_compatible": True}, {"version": "10.16.1"}, ""),
        ({"version_compatible": True}, {"version": "10.2.0"}, "TensorRT"),
        ({"version_compatible": True}, {"version": "11.0.0"}, "TensorRT"),
        ({"version_compatible": True}, {"api": "tensorrt_lean"}, ""),
        ({}, {"api": "tensorrt_lean"}, "library"),
        ({}, {"sm": 89, "device": "B"}, "GPU"),
        ({}, {"device": "B"}, "GPU"),
        ({"builder": {"hardware_compatible": True}}, {"sm": 89, "device": "B"}, ""),
        ({"builder": {"hardware_compatible": True}}, {"sm": 87, "device": "Orin"}, "GPU"),
        ({"builder": {"hardware_compatible": True}}, {"sm": 75, "device": "T4"}, "GPU"),
    ],
)
def test_engines_stay_where_they_were_built(
    built: dict[str, Any], here: dict[str, Any], refused: str, tmp_path: Path
) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"plan")
    told = {"sha256": sha256_of(engine), "api": "tensorrt", **built}
    described = {"bundle": "d", "engine": told, "device": {"name": "A", "sm": 86}}
    write_json(tmp_path / "engine.json", described | {"versions": {"tensorrt": "10.3.0"}})
    machine = Here("tensorrt", "10.3.0", "A", 86)._replace(**here)
    error = why_not(engine, "d", machine)
    assert (error.what if error else "") == (
        refused and f"this engine was built for another {refused}"
    )


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────


def test_differences() -> None:
    want = np.ones((4, 10), np.float32)
    rows = compare.compare({"y": want * np.float32(0.99)}, {"y": want})
    assert rows["y"]["sqnr_db"] == pytest.approx(40.0, abs=0.01)  # noise of 1 %
    assert rows["y"]["max_abs"] == pytest.approx(0.01, rel=1e-4)
    assert compare.mismatches(rows, 39.0) == []
    assert "y: SQNR 40.0 dB, at least 41 expected" in compare.mismatches(rows, 41.0)
    broken = want.copy()
    broken[0, 0] = np.nan
    (text,) = compare.mismatches(compare.compare({"y": broken}, {"y": want}), 0.0)
    assert "1 values are not finite" in text
    both = compare.compare(
        {"y": want, "class": np.arange(4)}, {"y": want, "class": np.arange(4) + 1}
    )
    assert both["class"]["equal"] == 0.0
    assert compare.mismatches(both, 40.0) == []  # the floats it was chosen by agree


def test_missing_outputs_and_shapes_are_bad_artifacts() -> None:
    with pytest.raises(TrtError, match="lacks outputs") as caught:
        compare.compare({}, {"y": np.zeros(1)})
    assert caught.value.exit_code == 7
    with pytest.raises(TrtError, match="another shape"):
        compare.compare({"y": np.zeros(2)}, {"y": np.zeros(1)})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"shape": ["batch", 2], "max": [8, 2]}, [(0, 8), (4, 12)]),
        ({"shape": ["batch", 2], "max": [12, 2]}, [(0, 12)]),
        ({"shape": [4, 2], "max": None}, [(0, 4), (4, 8), (8, 12)]),
        ({"shape": [12, 2], "max": None}, [(0, 12)]),
    ],
)
def test_samples_go_in_calls_that_fit(
    spec: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    feeds = {"x": np.arange(24.0).reshape(12, 2)}
    calls = compare.batches(feeds, [{"name": "x", **spec}])
    assert calls == expected
    made = compare.run_all(lambda given: {"y": given["x"] * 2}, feeds, calls)
    np.testing.assert_array_equal(made["y"], feeds["x"] * 2)


def test_states_whose_rows_are_not_samples_go_in_one_call() -> None:
    feeds = {"x": np.zeros((12, 3)), "h": np.zeros((1, 12, 4)), "k": np.float32(1)}
    specs = [{"name": "x", "shape": ["n", 3], "max": [4, 3]}, {"name": "h", "shape": [1, "n", 4]}]
    assert len(compare.batches(feeds, [*specs, {"name": "k", "shape": []}])) == 1


def test_feeds_for_timing_have_the_profiles_shape() -> None:
    specs = [{"name": "x", "shape": ["n", 3], "opt": [4, 3]}]
    feeds = {"x": np.arange(6.0).reshape(2, 3)}
    assert resized(feeds, specs, None)["x"].shape == (4, 3)
    np.testing.assert_array_equal(resized(feeds, specs, 3)["x"], feeds["x"][[0, 1, 0]])


# ── times ────────────────────────────────────────────────────────────────────────────────────────


class Gpu:
    """Stream, events and host under one clock; each part takes a known time."""

    def __init__(self) -> None:
        self.now_ns, self.recorded, self.open = 0, {}, 0  # type: ignore[var-annotated]

    def scope(self) -> Gpu:
        return self

    def event(self) -> int:
        self.open += 1
        return self.open

    def close(self) -> None:
        self.open = 0

    def record(self, event: int, stream: int) -> None:
        self.recorded[event] = self.now_ns

    def elapsed_ms(self, start: int, end: int) -> float:
        return (self.recorded[end] - self.recorded[start]) / 1e6

    def synchronize(self, stream: int) -> None:
        self.now_ns += 50_000


class Work:
    def __init__(self, gpu: Gpu, compute_ms: list[float]) -> None:
        self.gpu, self.compute_ms, self.calls = gpu, compute_ms, 0

    def upload(self) -> None:
        self.gpu.now_ns += 200_000

    def enqueue(self) -> None:
        self.gpu.now_ns += int(1e6 * self.compute_ms[self.calls % len(self.compute_ms)])
        self.calls += 1

    def download(self) -> None:
        self.gpu.now_ns += 100_000


def test_parts_are_timed_apart() -> None:
    gpu = Gpu()
    work = Work(gpu, [float(i) for i in range(1, 101)])
    plan = timing.Plan(warmup_ms=0.0, duration_ms=0.0, least=99)
    found = timing.measure(gpu, 1, work, plan, lambda: gpu.now_ns)
    assert gpu.open == 0, "events are given back"
    # One warm-up of 1 ms, then 2 … 100 ms; nearest rank of 99 values.
    assert (found["samples"], found["min_ms"], found["max_ms"]) == (99, 2.0, 100.0)
    assert (found["p50_ms"], found["p90_ms"], found["p99_ms"]) == (51.0, 91.0, 100.0)
    assert (found["h2d_ms"], found["d2h_ms"]) == (0.2, 0.1)
    assert found["latency_p50_ms"] == pytest.approx(51.3)
    assert found["cov"] == pytest.approx(np.std(range(2, 101)) / 51)
    assert found["throughput_per_s"] == pytest.approx(1e3 / (51 + 0.35))


def test_a_plan_is_time_and_count() -> None:
    gpu = Gpu()
    work = Work(gpu, [9.65])  # and 0.35 of transfers and waiting
    plan = timing.Plan(warmup_ms=100.0, duration_ms=500.0, least=5)
    found = timing.measure(gpu, 1, work, plan, lambda: gpu.now_ns)
    assert (work.calls, found["samples"]) == (60, 50)
    assert found["doubts"] == ["submitting takes about as long as computing: the host is the limit"]


@pytest.mark.parametrize(
    ("spread", "words"), [(0.01, ""), (0.04, "varies by"), (0.2, "no verdict")]
)
def test_unsteady_times_are_doubted(spread: float, words: str) -> None:
    rows = [(0.1, 1.0 + (spread if i % 2 else -spread), 0.1, 0.01) for i in range(100)]
    (text, *_) = timing.summary(rows, 100.0)["doubts"] or [""]
    assert words in text
    assert bool(words) == bool(text)


# ── the board and the bundle's demands ───────────────────────────────────────────────────────────


def test_facts_of_a_jetson(tmp_path: Path) -> None:
    release = "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64\n"
    assert facts.l4t(release) == "36.4.0"
    assert facts.l4t("") is None
    assert facts.jetpack("6.1+b123") == "6.1"
    assert facts.power_mode("NV Power Mode: MAXN\n0\n") == "MAXN"
    assert facts.power_mode("NV Power Mode: 15W\n2") == "15W"
    assert facts.available_bytes("MemTotal: 8 kB\nMemAvailable:    1024 kB\n") == 1 << 20
    for name, text in {
        "etc/nv_tegra_release": release,
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
        "sys/class/thermal/thermal_zone0/temp": "48500\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    found = facts.facts(tmp_path)
    assert (found["model"], found["l4t"]) == ("NVIDIA Jetson Orin Nano", "36.4.0")
    assert found["temperature_c"] == 48.5
    assert facts.driver_version(tmp_path) == "36.4.0"


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("8.6.1", False),
        ("10.2.9", False),
        ("10.3.0.26", True),
        ("10.16.1.11", True),
        ("11.4.0", True),
        ("12.0", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, fits: bool) -> None:
    bundle = Bundle(Path(), {"requires": {"tensorrt": {"min": "10.3", "below": "12"}}})
    assert numbers("10.3.0.26") == (10, 3, 0, 26)
    if fits:
        check_version(bundle, version)
    else:
        with pytest.raises(TrtError, match=r"expected >= 10\.3, < 12"):
            check_version(bundle, version)


@pytest.mark.parametrize(
    ("sm", "least", "outcome"),
    [
        (87, None, ""),
        (75, None, "refused"),
        (121, None, "newer"),
        (87, 89, "refused"),
        (90, 89, ""),
    ],
)
def test_gpus_by_their_sm(sm: int, least: int | None, outcome: str) -> None:
    bundle = Bundle(Path(), {"requires": {"sm": [80, 86, 87, 89, 90, 110], "sm_min": least}})
    if outcome == "refused":
        with pytest.raises(TrtError, match=f"got SM {sm}"):
            check_gpu(bundle, "GPU", sm)
    else:
        assert outcome in (check_gpu(bundle, "GPU", sm) or "")


ORIN_NANO = (
    "11-22-2026 10:00:00 RAM 2711/7620MB (lfb 5x4MB) SWAP 0/3810MB (cached 0MB) CPU [2%@729] "
    "GR3D_FREQ 99%@[305] cpu@49.468C tj@50.9C VDD_IN {now}mW/4545mW VDD_CPU_GPU_CV 533mW/533mW"
)
AGX_ORIN = "GR3D_FREQ 0% VDD_GPU_SOC 3219mW/3219mW VDD_CPU_CV 804mW/804mW VIN_SYS_5V0 4132mW/4132mW"


def test_power_of_a_jetson_and_of_a_pc() -> None:
    text = "\n".join([ORIN_NANO.format(now=n) for n in (4000, 6000)] + ["cut off: RAM 27"])
    found = power.summary("tegrastats", text)
    assert (found["mean_mw"], found["of"], found["readings"]) == (5000.0, "VDD_IN", 2)
    found = power.summary("tegrastats", AGX_ORIN)
    assert found["mean_mw"] == 3219 + 804 + 4132
    assert found["of"] == "VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0"
    found = power.summary("nvidia-smi", "71.5\n72.5\n[N/A]\n")
    assert (found["mean_mw"], found["readings"]) == (72_000.0, 2)
    assert power.summary("nvidia-smi", "[N/A]") == {}


def test_the_tool_runs_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "tegrastats"
    tool.write_text(f"#!/bin/sh\nwhile :; do echo '{AGX_ORIN}'; sleep 0.02; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with power.Watch() as watch:
        assert watch.told == {}
        time.sleep(0.3)
    assert watch.told["readings"] > 1
    assert energy(watch, {"throughput_per_s": 100.0})["energy_mj"] == pytest.approx(81.55)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with power.Watch() as watch:
        pass
    assert energy(watch, {"throughput_per_s": 100.0}) == {}
