"""The adapter against the recorded names of 8.6, 10.3, 10.16 and 11.4: none but theirs exist."""

from __future__ import annotations

import ctypes
import importlib
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from runtimes.trt import api
from runtimes.trt.child import run_child
from runtimes.trt.errors import TrtError
from runtimes.trt.probe import why_no_gpu
from tests import models
from tests.runtimes.trt import board

VERSIONS = ("8.6", "10.3", "10.16", "11.4")
every_version = pytest.mark.parametrize("version", VERSIONS)
SPEC = {"name": "image", "min": [1, 1, 28, 28], "opt": [4, 1, 28, 28], "max": [8, 1, 28, 28]}


def fake(version: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FAKE_TENSORRT", version)
    monkeypatch.syspath_prepend(str(board.HERE))
    for name in [n for n in sys.modules if n.partition(".")[0] == "fake_tensorrt"]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("fake_tensorrt")


def parsed(trt: Any, tmp_path: Path, model: Any = None) -> tuple[Any, Any, Any, api.Log]:
    """(builder, network, config, log) with a model in it."""
    path = models.save(model or models.convnet(), tmp_path / "model.onnx")
    log = api.Log(trt)
    builder = trt.Builder(log.listener)
    network = builder.create_network(api.network_flags(trt))
    api.parse(trt, network, log, str(path))
    return builder, network, builder.create_builder_config(), log


@every_version
def test_flags_are_those_that_exist(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fake(version, monkeypatch)
    names = list(trt.NetworkDefinitionCreationFlag.__members__)
    (bit,) = [i for i in range(8) if api.network_flags(trt) >> i & 1]
    assert names[bit] == ("EXPLICIT_BATCH" if version == "8.6" else "STRONGLY_TYPED")
    weak = {p: api.precision_flags(trt, p) for p in ("fp32", "fp16", "int8", "fp8")}
    expected = {"fp32": [], "fp16": ["FP16"], "int8": ["FP16", "INT8"], "fp8": ["FP16", "FP8"]}
    assert weak == (expected if version == "8.6" else {key: [] for key in expected})


@every_version
def test_what_a_version_lacks_is_no_attribute(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in must be as strict as the binding, or the other tests prove nothing."""
    trt = fake(version, monkeypatch)
    config = trt.IBuilderConfig()
    assert hasattr(trt.BuilderFlag, "INT8") == (version != "11.4")
    assert hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") == (version != "11.4")
    assert (
        hasattr(config, "progress_monitor")
        == hasattr(trt, "IProgressMonitor")
        != (version == "8.6")
    )
    with pytest.raises(AttributeError):
        config.no_such_option = 1
    assert not hasattr(trt.ICudaEngine, "num_bindings") or version == "8.6"


@every_version
def test_builder_options(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trt = fake(version, monkeypatch)
    builder, network, config, _ = parsed(trt, tmp_path)
    options = {"workspace_bytes": 1 << 28, "optimization_level": 4, "detailed": True}
    options |= {"hardware_compatible": True, "version_compatible": True, "sparsity": True}
    assert api.configure(trt, config, builder, options) == []
    assert config._limits == {trt.MemoryPoolType.WORKSPACE: 1 << 28}
    assert config.builder_optimization_level == 4
    assert config.profiling_verbosity is trt.ProfilingVerbosity.DETAILED
    assert config.hardware_compatibility_level is trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config._flags == {"VERSION_COMPATIBLE", "SPARSE_WEIGHTS"}
    api.add_profile(network, config, builder, [SPEC])
    assert config._profiles[0]._shapes == {"image": [SPEC["min"], SPEC["opt"], SPEC["max"]]}
    told: list[str] = []
    api.watch_progress(trt, config, told.append)
    assert told == (["building; this TensorRT tells no progress"] if version == "8.6" else [])


@every_version
def test_dla_where_there_is_one(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trt = fake(version, monkeypatch)
    builder, _, config, _ = parsed(trt, tmp_path)
    if version in ("8.6", "10.3"):
        (note,) = api.configure(trt, config, builder, {"dla_core": 1})
        assert "experimental" in note
        assert (config.DLA_core, config._flags) == (1, {"GPU_FALLBACK"})
        assert config.default_device_type is trt.DeviceType.DLA
    with pytest.raises(TrtError, match="no such DLA core") as caught:
        api.configure(trt, config, builder, {"dla_core": 2})
    assert caught.value.exit_code == 4


def test_the_stand_in_refuses_what_the_real_one_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for version, flags, words in (
        ("10.3", ["INT8"], "precision flags are not allowed"),
        ("8.6", [], "requires the INT8 flag"),
    ):
        trt = fake(version, monkeypatch)
        monkeypatch.setattr(trt, "driver", lambda: object())
        builder, network, config, log = parsed(trt, tmp_path, board.quantized_convnet())
        api.add_profile(network, config, builder, [SPEC])
        for name in flags:
            api.set_flag(trt, config, name)
        assert builder.build_serialized_network(network, config) is None
        assert words in log.last()
    trt = fake("11.4", monkeypatch)
    with pytest.raises(TrtError, match="it has no INT8") as caught:
        api.set_flag(trt, trt.IBuilderConfig(), "INT8")
    assert caught.value.exit_code == 4


def test_a_cache_of_another_version_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtimes.trt.build import _use_cache

    trt = fake("10.3", monkeypatch)
    config = trt.IBuilderConfig()
    assert _use_cache(config, None) == []
    assert config.get_timing_cache() is None
    path = board.HERE / "fake_tensorrt" / "names.json"  # a file that is no cache
    assert _use_cache(config, str(path)) == [
        "timing.cache is of another version or GPU: timed anew"
    ]
    assert config.get_timing_cache() is not None


def test_types_without_a_numpy_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fake("10.3", monkeypatch)
    assert api.dtype_name(trt.DataType.HALF) == "float16"
    with pytest.raises(TrtError, match="no type for BF16"):
        api.dtype_name(trt.DataType.BF16)


# ── the driver: this machine, and children that die ──────────────────────────────────────────────


def test_probe_harms_nobody() -> None:
    """Here: most likely no driver, and a sentence says so. With a GPU: None."""
    reason = why_no_gpu()
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert reason is not None
        assert reason.startswith("no NVIDIA driver: libcuda.so.1")
    else:
        assert reason is None or "NVIDIA" in reason


def test_a_child_that_dies_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real runtime dies of SIGSEGV where there is no driver; `Cuda` comes before it."""
    for name, value in board.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    (tmp_path / "dies").mkdir()
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    (tmp_path / "dies" / "tensorrt.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "dies"))
    with pytest.raises(TrtError, match=signal.SIGSEGV.name) as caught:
        run_child("build", {"api": "tensorrt"}, quiet=True)
    assert caught.value.exit_code == 5
    # The stand-in's runtime dies without a driver like the real one: it is not reached.
    monkeypatch.setenv("PYTHONPATH", board.environment()["PYTHONPATH"])
    with pytest.raises(TrtError, match="no NVIDIA driver") as caught:
        run_child("validate", {"api": "tensorrt", "gpu": 0}, quiet=True)
    assert caught.value.exit_code == 4
