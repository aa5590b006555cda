"""The interleaved benchmark on real engines in real processes; timing itself is only ordered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compressor import bench as benching
from compressor.bench import BenchPlan, BenchResult, Variant, bench
from compressor.bench.child import Child, ChildError, child_environment
from compressor.bench.result import Round
from compressor.result import Failure
from runtimes.arrays import read_arrays
from runtimes.errors import BoardError, UsageError
from runtimes.host import CpuTime
from runtimes.timing import TimingPlan, WarmUp
from runtimes.types import Artifact
from tests import models
from tests.runtimes.artifacts import artifact_of

MS = 1_000_000
FEEDS = {b: [models.feeds(models.convnet(), b, s) for s in range(2)] for b in (1, 4)}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Efforts of a fraction of a second a round."""
    timing = TimingPlan(
        block_ns=10 * MS, block_iterations=2, warmup_ns=1, warmup_iterations=1,
        warmup_slice_ns=2 * MS, warmup_cap_ns=100 * MS,
    )  # fmt: skip
    quick = replace(benching.EFFORTS["quick"], looks=(3, 5), blocks=2, timing=timing)
    certify = replace(quick, looks=(2, 4), self_test=True)
    monkeypatch.setattr(benching, "EFFORTS", {"quick": quick, "certify": certify})


@pytest.fixture
def small(tmp_path: Path) -> Artifact:
    return artifact_of(models.convnet(width=8), tmp_path / "small")


@pytest.fixture
def large(tmp_path: Path) -> Artifact:
    return artifact_of(models.convnet(width=64), tmp_path / "large")


def ort(name: str, artifact: Artifact) -> Variant:
    return Variant(name, artifact, "onnxruntime")


def test_a_several_times_smaller_model_is_certainly_faster(
    small: Artifact, large: Artifact, tmp_path: Path
) -> None:
    told: list[float] = []
    result = bench(
        [ort("large", large), ort("small", small)],
        FEEDS,
        BenchPlan("quick", batches=(1, 4)),
        progress=lambda done, _: told.append(done),
        samples_dir=tmp_path / "samples",
    )
    for batch in (1, 4):
        timing = result.timing("small", batch, "large")
        assert timing.speedup_interval[0] > 1.0
        assert timing.p50_interval_ms[0] <= timing.p50_ms <= timing.p50_interval_ms[1]
        assert len(read_arrays(tmp_path / "samples" / timing.samples)) == 3 * 2
    assert result.timing("large", 1, "small").speedup_interval[1] < 1.0
    assert told == sorted(told)
    assert told[-1] == 1.0
    json.dumps(result.to_json(), allow_nan=False)


def test_two_engines_share_a_benchmark(small: Artifact) -> None:
    pytest.importorskip("openvino", reason="extra openvino")
    both = [ort("ort", small), Variant("ov", small, "openvino")]
    result = bench(both, FEEDS, BenchPlan("quick"))
    assert result.timing("ov", 1, "ort").speedup > 0
    assert "openvino" in result.versions("ov")
    assert result.settings("ov")["INFERENCE_NUM_THREADS"] == "1"


def test_the_same_seed_gives_the_same_orders(small: Artifact) -> None:
    variants = [ort("a", small), ort("b", small)]
    first, second = (bench(variants, FEEDS, BenchPlan("quick", seed=7)) for _ in range(2))
    assert [r.block_orders for r in first.rounds] == [r.block_orders for r in second.rounds]
    assert all(r.block_orders[0] == r.block_orders[1][::-1] for r in first.rounds)


def test_a_model_that_does_not_load_is_a_failure_not_a_crash(
    small: Artifact, large: Artifact
) -> None:
    large.path.write_bytes(b"no model")
    result = bench([ort("good", small), ort("bad", large)], FEEDS, BenchPlan("quick"))
    assert result.failure("bad", 1).kind == "BadArtifact"
    assert "no speed-up" in result.timing("good", 1, "bad").doubts[-1]
    with pytest.raises(BoardError, match="bad at batch 1"):
        result.timing("bad", 1)


def test_a_batch_a_model_refuses_costs_that_batch_only(small: Artifact, large: Artifact) -> None:
    odd = {1: FEEDS[1], 4: [{"image": np.zeros((4, 1, 28, 28), np.float32)}]}
    fixed = replace(small, inputs=(replace(small.inputs[0], shape=(1, 1, 28, 28)),))
    Artifact.write(fixed.root, "onnxruntime", fixed.entry, fixed.inputs, fixed.outputs)
    result = bench([ort("fixed", small)], odd, BenchPlan("quick", batches=(1, 4)))
    assert result.timing("fixed", 1).n > 0
    assert "wrong shape" in result.failure("fixed", 4).message


def test_a_child_that_dies_is_reported(
    small: Artifact, large: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Child.ask

    def deadly(self: Child, op: str, **fields: object) -> dict:
        if op == "block" and self._name == "doomed":
            os.kill(self.pid, signal.SIGKILL)
        return ask(self, op, **fields)

    monkeypatch.setattr(Child, "ask", deadly)
    result = bench([ort("fine", small), ort("doomed", large)], FEEDS, BenchPlan("quick"))
    assert "was killed by SIGKILL" in result.failure("doomed", 1).message
    assert result.failure("doomed", 1).exit_code == 6
    assert result.timing("fine", 1).rounds == 3


def test_a_child_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    child = Child("mute", 1, tmp_path / "log", answer_within_s=0.2)
    try:
        with pytest.raises(ChildError, match="did not answer within"):
            child.receive()
    finally:
        child.close()


def test_a_child_that_fails_to_start_shows_its_last_words(tmp_path: Path) -> None:
    child = Child("m", 1, tmp_path / "log", 60)
    try:
        with pytest.raises(ChildError, match=r"exit code 1.*TypeError"):
            child.ask("hello", no_such_field=1)
    finally:
        child.close()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_no_engine_drags_torch_in(engine: str, small: Artifact) -> None:
    pytest.importorskip(engine, reason="extra " + engine)
    code = (
        "import sys; from pathlib import Path; from runtimes.serve import Server; s = Server();"
        f"s.hello({engine!r}); s.load({str(small.root)!r}, 1, 'CPU');"
        "print([m for m in ('torch', 'onnx', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_threads_are_fixed_before_the_child_starts() -> None:
    environment = child_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"


def test_certify_stops_when_decided_and_tests_itself(small: Artifact, large: Artifact) -> None:
    seen: list[int] = []
    plan = BenchPlan("certify")
    variants = [ort("large", large), ort("small", small)]
    result = bench(variants, FEEDS, plan, decide=lambda r: bool(seen.append(len(r.rounds)) or True))
    assert seen == result.looks == [2]
    assert result.level == pytest.approx(0.975)
    assert result.timing("large (again)", 1, "large").rounds == 2


@pytest.mark.parametrize(("decided", "looks"), [(True, [3]), (False, [3, 5])])
def test_what_is_undecided_at_the_first_look_gets_a_second(
    small: Artifact, decided: bool, looks: list[int]
) -> None:
    result = bench([ort("a", small)], FEEDS, BenchPlan("quick"), decide=lambda _: decided)
    assert result.looks == looks
    assert result.level == pytest.approx(0.975)  # shared by both, also where one was enough


def test_where_nothing_is_to_be_decided_one_look_has_the_whole_level(small: Artifact) -> None:
    result = bench([ort("a", small)], FEEDS, BenchPlan("quick"))
    assert result.looks == [3]
    assert result.level == pytest.approx(0.95)


def test_the_cap_ends_an_undecided_certification(small: Artifact) -> None:
    variants = [ort("a", small), ort("b", small)]
    for cap_s in (0.0, 0.01):
        plan = BenchPlan("certify", cap_s=cap_s, self_test=False)
        result = bench(variants, FEEDS, plan, decide=lambda _: False)
        assert len(result.rounds) == benching.MIN_ROUNDS
        assert "cap" in result.stopped


@pytest.mark.parametrize(
    ("names", "batches", "text"),
    [(["a", "a"], (1,), "names of their own"), ([], (1,), "names"), (["a"], (9,), "batch 9")],
)
def test_mistakes_are_named(names: list, batches: tuple, text: str, small: Artifact) -> None:
    with pytest.raises(UsageError, match=text):
        bench([ort(n, small) for n in names], FEEDS, BenchPlan("quick", batches=batches))


def test_unknown_efforts_are_named(small: Artifact) -> None:
    with pytest.raises(UsageError, match="quick, certify"):
        bench([ort("a", small)], FEEDS, BenchPlan("hasty"))  # type: ignore[arg-type]


def scripted(small: Artifact, **medians_ms: list[float]) -> BenchResult:
    """A result as if measured: one block a round."""
    result = BenchResult(
        tuple(ort(n, small) for n in medians_ms), (1,), 1, 0, "quick", (5,), TimingPlan()
    )
    for i in range(len(next(iter(medians_ms.values())))):
        one = Round(i, list(medians_ms), seconds=10.0)
        for name, values in medians_ms.items():
            one.blocks[(name, 1)] = [np.full(100, values[i] * MS, dtype=np.int64)]
            one.warmups[(name, 1)] = WarmUp(1, 1, 1, True)
        result.rounds.append(one)
    for name in medians_ms:
        host = {"cpus_usable": 2}
        result.hellos[name] = {"host": host, "clock_overhead_ns": 50, "versions": {}}
    return result


def test_speedups_are_paired_by_round(small: Artifact) -> None:
    """Rounds that differ twofold: unpaired nothing could be said, paired the ratio is exact."""
    result = scripted(small, base=[1.0, 2.0, 1.5], fast=[0.5, 1.0, 0.75])
    timing = result.timing("fast", 1, "base")
    assert timing.speedup_interval == pytest.approx((2.0, 2.0))
    assert timing.p50_interval_ms[1] > 2 * timing.p50_interval_ms[0]
    assert "vary" in timing.doubts[0]


def test_what_the_machine_did_is_doubted(small: Artifact) -> None:
    result = scripted(small, a=[1.0, 1.0])
    for one in result.rounds:
        one.statuses["a"] = {"cpu_s": 4.0, "peak_rss_bytes": 5}
        one.observe(CpuTime(0, 0), CpuTime(13, 1), 0, 3, own_before_s=0, own_after_s=1)
    assert result.rounds[0].others_cores == pytest.approx(0.8)
    said = " ".join(result.timing("a", 1).doubts)
    assert "0.8 cores busy" in said
    assert "took 10% of the time" in said
    assert "swap" in said


def test_a_failed_self_test_is_doubted(small: Artifact) -> None:
    medians = {"a": [1.0, 1.01, 1.0], "a (again)": [1.2, 1.21, 1.2]}
    result = scripted(small, **medians)
    result.self_test = " (again)"
    assert "against itself differs by 16" in " ".join(result.timing("a", 1).doubts)


def test_a_failure_of_one_batch_leaves_the_variant_alive(small: Artifact) -> None:
    result = scripted(small, a=[1.0])
    result.batches = (1, 16)
    result.failures[("a", 16)] = Failure("UsageError", "wrong shape", 2)
    assert [v.name for v in result.alive()] == ["a"]
    result.failures[("a", None)] = Failure("BoardError", "died", 6)
    assert result.alive() == []
