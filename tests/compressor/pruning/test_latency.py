"""A budget in time: the fitted model against costs that are known, then a real engine."""
# ruff: noqa: E402

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("torch_pruning", reason="needs the torch extra")

import compressor
from compressor.pruning import costs, latency, saliency
from compressor.pruning.budget import parse_budget
from compressor.pruning.graph import find_groups
from compressor.pruning.module_pass import timed_subject
from compressor.pruning.plan import Subject
from compressor.pruning.select import removable
from runtimes.errors import Unsupported, UsageError
from tests import models
from tests import small_modules as sm

FIXED = 40_000.0


def subject(name: str = "separable", budget: Any = "50%") -> latency.Subject:
    return of_module(sm.build(name), [torch.from_numpy(sm.feeds(name, 2))], budget)


def of_module(module: Any, example: Any, budget: Any = "50%") -> latency.Subject:
    groups, _ = removable(module, example, find_groups(module, example))
    scores = saliency.random(groups, 0)
    given, wanted = Subject(module, example, groups, [], None, 0), parse_budget({"latency": budget})
    return timed_subject(given, scores, wanted, scope="global", floor=0.1)


def known(modules: Sequence[Any], per_mac: float = 0.5, fixed: float = FIXED) -> list[float]:
    """A device whose time is a constant and its MACs."""
    example = [torch.from_numpy(sm.feeds("separable", 2))]
    return [fixed + per_mac * costs.count(m, example, "macs") for m in modules]


def of_step(size: int, fixed: float = 0.0) -> latency.Timer:
    """A device whose kernels compute whole blocks of output channels."""

    def timer(modules: Sequence[Any]) -> list[float]:
        return [fixed + 1e4 * sum(map(blocks, m.modules())) for m in modules]

    def blocks(layer: Any) -> int:
        return -(-layer.weight.shape[0] // size) if hasattr(layer, "weight") else 0

    return timer


def test_the_fitted_model_predicts_widths_it_has_not_seen() -> None:
    given = subject()
    learned = latency.learn(given, known, 8, 8)
    assert learned.error < 0.03
    assert learned.multiple == 8
    for group in given.groups:
        gone = list(range(group.width // 4))
        (true,) = known([given.shrunk({group.name: gone})])
        assert learned.cost({group.name: len(gone)}) == pytest.approx(true, rel=0.05)


def test_the_multiple_is_the_least_that_wastes_nothing() -> None:
    given = of_module(wide_net(2), [torch.zeros(2, 3, 24, 24)])
    assert latency.learn(given, of_step(1), 0, 4).multiple == 4
    assert latency.learn(given, of_step(16), 0, 4).multiple == 16
    assert latency.learn(given, of_step(16), 3, 4).multiple == 3
    assert latency.learn(subject("dense"), of_step(16), 0, 5).multiple == 5  # too narrow to tell


def test_what_channels_cannot_change_is_said() -> None:
    bound = latency.learn(subject(), lambda ms: known(ms, per_mac=1e-4), 8, 8)
    assert bound.fixed > 0.9
    assert "does not depend on channels" in bound.note()
    free = latency.learn(subject(), known, 8, 8)
    assert "does not depend" not in free.note()


@pytest.mark.parametrize("budget", ["60%", 0.8])
def test_the_budget_is_met_by_measured_time(budget: Any) -> None:
    given = subject(budget=budget)
    learned = latency.learn(given, known, 4, 4)
    wanted = parse_budget({"latency": budget})
    met = latency.meet(given, wanted, learned, known)
    share = met.after_ns / met.before_ns
    assert 0.9 * wanted.value < share <= latency.TOLERATED * wanted.value


def test_a_device_unlike_its_model_corrects_the_aim_or_is_refused() -> None:
    given = subject(budget="80%")
    learned = latency.learn(given, known, 4, 4)

    def slower(modules: Sequence[Any]) -> list[float]:
        whole, *rest = known(modules)
        return [whole, *(0.5 * (whole + x) for x in rest)]

    budget = parse_budget({"latency": "80%"})
    met = latency.meet(given, budget, learned, slower)
    assert met.after_ns <= latency.TOLERATED * 0.8 * met.before_ns
    stuck = [lambda ms: [1e6] * len(ms), lambda ms: [1e6, 0.99e6][: len(ms)]]
    for timer in stuck:
        with pytest.raises((Unsupported, UsageError), match=r"of the time, 80% were|cannot be met"):
            latency.meet(given, budget, learned, timer)


def test_budgets_in_time() -> None:
    assert parse_budget({"latency": "2.5ms"}).limit(10e6) == 2.5e6
    assert parse_budget({"latency": "300us"}).limit(10e6) == 3e5
    assert parse_budget({"latency": 0.3}).limit(10e6) == pytest.approx(3e6)
    assert str(parse_budget({"latency": "2.5ms"})) == "latency: 2.5 ms"
    for wrong in ("2m", 3, "ms", "30M"):
        with pytest.raises(UsageError, match=r"keep.latency: not an amount"):
            parse_budget({"latency": wrong})
    with pytest.raises(UsageError, match=r"less than the 1 ms"):
        parse_budget({"latency": "2ms"}).limit(1e6)


def wide_net(times: int = 1) -> Any:
    a, b = 64 * times, 128 * times
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, a, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(a, b, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(b, a, 3, padding=1), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(a, 10),
    ).eval()  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("place", ["own", "shared"])
def test_on_a_real_engine_the_pruned_build_takes_the_time_asked_for(
    tmp_path: Any, place: str
) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    prune: dict[str, Any] = {"prune_channels": {"keep": {"latency": "50%"}, "multiple": 16}}
    recipe: dict[str, Any] = {
        "model": {"inputs": {"x": ["batch", 3, 24, 24]}},
        "targets": {"onnxruntime": {"steps": [prune, "to_onnx", "to_onnxruntime"]}},
        "gates": ["agreement>=0%", "sqnr>=-30dB", "speedup>=0.5"],
        "measure": {"effort": "quick"},
    }
    if place == "shared":
        prune["prune_channels"]["on"] = "onnxruntime"
        recipe |= {"steps": [prune], "targets": {"onnxruntime": {"steps": ["to_onnxruntime"]}}}
    result = compressor.compress(
        wide_net(), recipe, out=tmp_path / "out",
        calibration={"x": rng.standard_normal((32, 3, 24, 24)).astype(np.float32)},
    )  # fmt: skip
    target = result.record.target("onnxruntime")
    (candidate,) = [c for c in target.candidates if c.role == "candidate"]
    (step,) = [s for s in result.record.steps if s.step == "prune_channels"]
    assert any(note.startswith("latency model of") for note in step.notes)
    assert candidate.timings[0].speedup > 1.5
    assert candidate.parameters < 0.8 * result.record.reference.parameters


@pytest.mark.slow
def test_a_graph_is_pruned_to_a_time_without_its_source(tmp_path: Any) -> None:
    given = models.convnet(width=64)
    path = models.save(given, tmp_path / "model.onnx")
    prune = {"keep": {"latency": "60%"}, "on": "onnxruntime", "samples": 128}
    recipe: dict[str, Any] = {
        "model": {"source": str(path)},
        "steps": [{"prune_channels": prune}],
        "targets": {"onnxruntime": {"steps": ["to_onnxruntime"]}},
        "gates": ["agreement>=0%", "sqnr>=-30dB", "speedup>=0.5"],
        "measure": {"effort": "quick"},
    }
    data = models.feeds(given, batch=192)
    result = compressor.compress(None, recipe, out=tmp_path / "out", calibration=data)
    target = result.record.target("onnxruntime")
    (candidate,) = [c for c in target.candidates if c.role == "candidate"]
    (step,) = [s for s in result.record.steps if s.step == "prune_channels"]
    assert any(note.startswith("latency model of") for note in step.notes)
    assert any("re-solved by least squares" in note for note in step.notes)
    assert candidate.timings[0].speedup > 1.3
    assert candidate.macs < 0.8 * result.record.reference.macs


def test_latency_needs_a_target(tmp_path: Any) -> None:
    recipe = {
        "model": {"inputs": {"x": ["batch", 3, 24, 24]}},
        "steps": [{"prune_channels": {"keep": {"latency": "50%"}}}],
        "targets": {"onnxruntime": {"steps": ["to_onnxruntime"]}},
    }
    data = {"x": np.random.default_rng(0).random((32, 3, 24, 24), np.float32)}
    with pytest.raises(UsageError, match="on: <target>"):
        compressor.compress(wide_net(), recipe, out=tmp_path / "out", calibration=data)
