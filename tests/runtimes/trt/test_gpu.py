"""With an NVIDIA GPU: the driver through ctypes and the timing core, against PyTorch's figures.

Not TensorRT: what runs in the streams is PyTorch's. TensorRT-RTX's own engine is built and run
where it is installed and knows the GPU. Skipped with the reason elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtimes.trt import api
from runtimes.trt.cuda import Cuda
from runtimes.trt.errors import TrtError
from runtimes.trt.main import main
from runtimes.trt.probe import why_no_gpu
from runtimes.trt.timing import Plan, measure
from tests import models
from tests.runtimes.trt import board

pytestmark = pytest.mark.gpu
RTX_KNOWS = {75, 80, 86, 89, 120, 121}


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    if reason := why_no_gpu():
        pytest.skip(reason)
    made = Cuda()
    yield made
    made.close()


@pytest.fixture
def torch() -> Any:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's figures")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no CUDA here")
    return torch


def test_the_device_is_torchs(cuda: Cuda, torch: Any) -> None:
    theirs = torch.cuda.get_device_properties(0)
    assert cuda.device.name == theirs.name
    assert cuda.device.sm == 10 * theirs.major + theirs.minor
    assert cuda.device.memory_bytes == theirs.total_memory
    assert cuda.device.processors == theirs.multi_processor_count
    free, total = cuda.memory()
    assert 0 < free <= total


def test_memory_is_taken_and_given_back(cuda: Cuda) -> None:
    before, size = cuda.memory()[0], 256 << 20
    scope = cuda.scope()
    scope.allocate(size)
    taken = before - cuda.memory()[0]
    assert size <= taken < 2 * size  # whole pages, and what else the driver needs
    scope.close()
    assert abs(before - cuda.memory()[0]) < 64 << 20  # other programs may run
    with pytest.raises(TrtError, match="too little memory on the GPU") as caught:
        cuda.scope().allocate(1 << 46)
    assert caught.value.exit_code == 5


def test_copies_go_round(cuda: Cuda) -> None:
    scope = cuda.scope()
    stream = scope.stream()
    given, got = (scope.pinned((1000, 7), np.float32) for _ in range(2))
    given[...] = np.random.default_rng(0).random(given.shape)
    address = scope.allocate(given.nbytes)
    cuda.upload(address, given, stream)
    cuda.download(got, address, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(got, given)
    del given, got
    scope.close()


class Products:
    """Matrix products of PyTorch in a stream of ours, and PyTorch's own events around them."""

    def __init__(self, torch: Any, stream: int, size: int, count: int) -> None:
        self.torch, self.count = torch, count
        self.stream = torch.cuda.ExternalStream(stream)
        self.a, self.b = (torch.randn(size, size, device="cuda") for _ in range(2))
        self.made = torch.empty_like(self.a)
        self.theirs_ms: list[float] = []
        torch.cuda.synchronize()

    def upload(self) -> None:
        pass

    def enqueue(self) -> None:
        with self.torch.cuda.stream(self.stream):
            for _ in range(self.count):
                self.torch.mm(self.a, self.b, out=self.made)

    def download(self) -> None:
        pass

    def timed_by_torch(self, repeats: int) -> float:
        """Median ms by PyTorch's events."""
        event = self.torch.cuda.Event
        for _ in range(repeats):
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record(self.stream)
            self.enqueue()
            end.record(self.stream)
            end.synchronize()
            self.theirs_ms.append(start.elapsed_time(end))
        return float(np.median(self.theirs_ms))


def test_compute_times_are_torchs(cuda: Cuda, torch: Any) -> None:
    scope = cuda.scope()
    stream = scope.stream()
    work = Products(torch, stream, 2048, 8)
    found = measure(cuda, stream, work, Plan(200.0, 500.0, 50))
    theirs = work.timed_by_torch(50)
    assert found["p50_ms"] == pytest.approx(theirs, rel=0.15)
    assert found["min_ms"] <= found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"]
    assert found["h2d_ms"] < 0.2 * found["p50_ms"], "nothing was copied"
    scope.close()


def test_a_graph_computes_the_same_and_submits_faster(cuda: Cuda, torch: Any) -> None:
    scope = cuda.scope()
    stream = scope.stream()
    work = Products(torch, stream, 128, 50)
    work.enqueue()
    cuda.synchronize(stream)
    expected = work.made.clone()
    plain = measure(cuda, stream, work, Plan(100.0, 300.0, 50))
    launch = scope.capture(stream, work.enqueue)
    work.made.zero_()
    torch.cuda.synchronize()
    work.enqueue = launch  # type: ignore[method-assign]
    graphed = measure(cuda, stream, work, Plan(100.0, 300.0, 50))
    torch.testing.assert_close(work.made, expected, rtol=0, atol=0)
    assert graphed["enqueue_ms"] < plain["enqueue_ms"], "50 launches became one"
    scope.close()


def test_rtx_builds_and_runs(cuda: Cuda, tmp_path: Path) -> None:
    if not any(util.find_spec(name) for name in api.MODULES["tensorrt_rtx"]):
        pytest.skip("TensorRT-RTX is not installed: pip install edge-compressor[tensorrt-rtx]")
    if cuda.device.sm not in RTX_KNOWS:
        pytest.skip(f"TensorRT-RTX does not know SM {cuda.device.sm}")
    root = board.write_bundle(tmp_path / "bundle", models.convnet())
    out = tmp_path / "r.json"
    code = main([str(root), "--api", "tensorrt_rtx", "--result-json", str(out), "--try-anyway"])
    result = json.loads(out.read_text())
    assert (code, result["status"]) == (0, "validated"), result["reason"]
    assert (root / "model.rtx.plan").is_file()
    assert not (root / "model.engine").exists()
    assert result["timing"]
