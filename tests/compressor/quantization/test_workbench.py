"""What the workbench says of a precision is what the real artifact does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.quantization import sensitivity
from compressor.quantization.calibration import at_most
from compressor.quantization.sensitivity import FLOAT, Budget, measure, noise_share
from compressor.quantization.workbench import open_workbench
from exporters.base import Keep
from runtimes.types import Artifact
from tests import models
from tests.compressor.passes.test_quantize_weights import scanned
from tests.compressor.quantization.helpers import apply, engine, prepared
from tests.contract import subjects
from tests.step_env import make_env

TARGETS = ("onnxruntime", "openvino")


def bench_of(tmp_path: Path, given: Artifact, keep: Keep | None = None) -> tuple[Any, Any]:
    context = replace(subjects.context("quantize_static", given.format), keep=keep or Keep())
    env = make_env(
        tmp_path, reference=given, data=subjects.data(given), context=context, name="bench"
    )
    return open_workbench(given, env, samples=32), env


def outputs_of(made: Artifact, env: Any) -> list[dict[str, Any]]:
    feeds = env.data["selection"].feeds(range(32))
    with engine(made).open_session(made) as session:
        return [session.run(feeds)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["convnet", "unet", "lstm", "transformer_block"])
def test_nothing_changed_gives_the_models_own_outputs(
    tmp_path: Path, model: str, target: str
) -> None:
    given = prepared(tmp_path, model, target)
    bench, env = bench_of(tmp_path, given)
    if target == "openvino":  # the device's default would be bf16
        given = replace(given, facts={**given.facts, "execution": "f32"})
    want = outputs_of(given, env)
    got = bench.outputs({})
    for name, values in want[0].items():
        together = np.concatenate([batch[name] for batch in got])
        np.testing.assert_allclose(together, values, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("target", TARGETS)
def test_all_int8_is_as_noisy_as_the_artifact_that_would_ship(tmp_path: Path, target: str) -> None:
    given = prepared(tmp_path, "convnet", target)
    bench, env = bench_of(tmp_path, given)
    reference = bench.outputs({})
    assign = {g.name: "int8" for g in bench.groups if "int8" in g.options}
    assert assign
    predicted = noise_share(bench.outputs(assign), reference)
    made = apply(tmp_path, given, "quantize_static")
    whole = [{n: np.concatenate([b[n] for b in reference]) for n in reference[0]}]
    real = noise_share(outputs_of(made, env), whole)
    assert predicted == pytest.approx(real, rel=1.0, abs=2e-4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["convnet", "lstm", "transformer_block"])
def test_half_weights_cost_no_more_than_the_search_takes_them_for(
    tmp_path: Path, model: str, target: str
) -> None:
    bench, _ = bench_of(tmp_path, prepared(tmp_path, model, target))
    reference = bench.outputs({})
    for group in bench.groups:
        if "half" in group.options:
            half, eight = (
                noise_share(bench.outputs({group.name: o}), reference) for o in ("half", "w8")
            )
            assert half <= eight / 32


@pytest.mark.parametrize("target", TARGETS)
def test_fewer_bits_cost_more(tmp_path: Path, target: str) -> None:
    given = prepared(tmp_path, "hardswish_net", target)
    bench, env = bench_of(tmp_path, given)
    table = measure(bench, Budget(None), kept=env.checkpoint / "table.json")
    assert table.complete
    for group in (g for g in table.groups if "w4" in g.options):
        four, eight = (table.row(group.name, option) for option in ("w4", "w8"))
        assert four is not None
        assert eight is not None
        assert four.damage > eight.damage >= 0
        sizes = [bench.size_bytes(group, option) for option in (FLOAT, "w8", "w4")]
        assert sizes[0] > sizes[1] > sizes[2]


def test_measured_rows_survive_a_kill(tmp_path: Path) -> None:
    given = prepared(tmp_path, "convnet")
    bench, env = bench_of(tmp_path, given)
    path = env.checkpoint / "table.json"
    first = measure(bench, Budget(None), kept=path)
    asked = []
    bench.outputs = lambda assign: asked.append(assign)
    again = measure(bench, Budget(None), kept=path)
    assert again.rows == first.rows
    assert asked == []


def test_a_budget_ends_the_measurement(tmp_path: Path) -> None:
    bench, _ = bench_of(tmp_path, prepared(tmp_path, "convnet"))
    table = measure(bench, Budget(0.0))
    assert not table.complete
    assert {row.option for row in table.rows} == {FLOAT}


def test_kept_layers_are_in_no_group(tmp_path: Path) -> None:
    given = prepared(tmp_path, "convnet")
    all_groups = bench_of(tmp_path, given)[0].groups
    first = all_groups[0].name
    left = bench_of(tmp_path / "kept", given, Keep(float=(first,)))[0].groups
    assert [g.name for g in left] == [g.name for g in all_groups[1:]]


def test_channels_count_by_their_own_variance() -> None:
    want = np.stack([np.linspace(0, 1000, 50), np.linspace(0, 1, 50)], axis=1)
    got = want + np.array([1.0, 0.0])  # a pixel on a box is little
    worse = want + np.array([0.0, 1.0])  # as much on a score is everything
    small, large = (noise_share([{"y": x}], [{"y": want}]) for x in (got, worse))
    assert small < 1e-4
    assert large > 1
    assert noise_share([{"y": np.full_like(want, np.nan)}], [{"y": want}]) == float("inf")


def test_weights_in_the_body_of_a_loop_are_no_group_of_the_graph_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.ALL, "scanned", scanned)
    given = prepared(tmp_path, "scanned", "openvino")
    bench, _ = bench_of(tmp_path, given)
    for group in bench.groups:
        for option in group.options:
            assert bench.outputs({group.name: option})


@pytest.mark.parametrize("target", TARGETS)
def test_what_would_take_too_long_is_measured_on_fewer_samples(
    tmp_path: Path, target: str, monkeypatch: Any
) -> None:
    bench, _ = bench_of(tmp_path, prepared(tmp_path, "convnet", target))
    whole = measure(bench, Budget(None), options=("int8",))
    assert whole.samples == 32
    monkeypatch.setattr(sensitivity, "MOST_S", 1e-9)
    bench, _ = bench_of(tmp_path / "again", prepared(tmp_path / "again", "convnet", target))
    part = measure(bench, Budget(None), options=("int8",))
    assert part.samples == sensitivity.BATCH
    assert part.complete
    for row in whole.rows:
        found = part.row(row.group, row.option)
        assert found is not None
        assert found.damage == pytest.approx(row.damage, rel=3.0)


def test_batches_are_kept_whole() -> None:
    feeds = [{"x": np.zeros((n, 2))} for n in (4, 4, 4, 2)]
    assert [len(at_most(feeds, n)) for n in (0, 3, 4, 7, 8, 13, 14, 99)] == [1, 1, 1, 1, 2, 3, 4, 4]


def test_a_killed_measurement_goes_on_with_as_many_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number depends on the time a pass takes, which is another one at the next attempt."""
    given = prepared(tmp_path, "convnet")
    bench, env = bench_of(tmp_path, given)
    path, real = env.checkpoint / "table.json", bench.outputs
    monkeypatch.setattr(sensitivity, "MOST_S", 1e-9)

    def dying(assign: Any) -> Any:
        if assign.get("conv3"):
            raise MemoryError
        return real(assign)

    bench.outputs = dying
    with pytest.raises(MemoryError):
        measure(bench, Budget(None), kept=path)
    monkeypatch.setattr(sensitivity, "MOST_S", 1e9)
    again, _ = bench_of(tmp_path, given)
    table = measure(again, Budget(None), kept=path)
    assert table.complete
    assert table.samples == again.samples == bench.samples < 32
