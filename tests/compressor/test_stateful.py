"""Sequences through models that take one step a call: state fed back, calibrated, drifting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from compressor import compress, stateful
from compressor.cli import build_parser, main
from compressor.drift import drift
from compressor.flags import recipe_from_flags
from compressor.metrics import load_metric
from compressor.metrics.steps import over_steps
from compressor.opening import open_data_sets
from compressor.recipe import load_recipe
from compressor.sources import SourceSpec, open_source
from compressor.stateful import RecurrentState, Steps, over_sequences
from exporters.base import batch_range
from runtimes.base import load_runtime
from runtimes.errors import UsageError
from runtimes.types import TensorSpec
from tests import models
from tests.net import Net

PAIR = {"h_in": "h_out"}
HIDDEN, FEATURES = 24, 8


def layered(batch="batch", layers=2, seed=0, kind="LSTM"):
    """One step of an LSTM of some layers: states [layers, batch, hidden], ten classes out."""
    net = Net(seed)
    axis = net.constant("axis", [0], np.int64)
    x = net.op("Unsqueeze", "frame", axis, name="as_sequence")
    after = {"h": [], "c": []}
    for i in range(layers):
        w = net.constant(
            f"W{i}", net.rng.uniform(-0.4, 0.4, (1, 4 * HIDDEN, HIDDEN if i else FEATURES))
        )
        r = net.constant(f"R{i}", net.rng.uniform(-0.4, 0.4, (1, 4 * HIDDEN, HIDDEN)))
        b = net.constant(f"B{i}", net.rng.uniform(-0.2, 0.2, (1, 8 * HIDDEN)))
        before = [
            net.op("Slice", f"{s}_in", net.constant(f"{s}{i}a", [i], np.int64),
                   net.constant(f"{s}{i}b", [i + 1], np.int64), axis, name=f"{s}{i}")
            for s in ("h", "c")
        ]  # fmt: skip
        net.op(kind, x, w, r, b, "", *before, name=f"lstm{i}", outputs=3, hidden_size=HIDDEN)
        x = net.op("Squeeze", f"lstm{i}.out", net.constant(f"one{i}", [1], np.int64), name=f"y{i}")
        after["h"].append(f"lstm{i}.out1")
        after["c"].append(f"lstm{i}.out2")
    h = net.op("Concat", *after["h"], name="all_h", axis=0)
    c = net.op("Concat", *after["c"], name="all_c", axis=0)
    last = net.op("Squeeze", x, axis, name="last")
    state = [layers, batch, HIDDEN]
    return net.model(
        {"frame": [batch, FEATURES], "h_in": state, "c_in": state},
        {
            "logits": (net.gemm(last, "head", HIDDEN, 10), [batch, 10]),
            "h_out": (h, state),
            "c_out": (c, state),
        },
    )


def cache():
    """A mean over everything seen: the cache grows by one frame a step."""
    net = Net(0)
    one = net.constant("one", [1], np.int64)
    frame = net.op("Unsqueeze", "frame", one, name="as_row")
    now = net.op("Concat", "past", frame, name="append", axis=1)
    mean = net.op("ReduceMean", now, one, name="mean", keepdims=0)
    return net.model(
        {"frame": ["batch", 4], "past": ["batch", "seen", 4]},
        {"mean": (mean, ["batch", 4]), "present": (now, ["batch", "seen_now", 4])},
    )


def opened(tmp_path, model, state):
    path = models.save(model, tmp_path / "net.onnx")
    return open_source(SourceSpec(model=path, state=state), tmp_path / "artifact")


def sequences(n=6, steps=20, seed=0, features=FEATURES):
    return np.random.default_rng(seed).random((n, steps, features), dtype=np.float32)


def data(artifact, arrays, role="calibration"):
    state = RecurrentState.of(artifact)
    return open_data_sets({role: arrays}, artifact.inputs, artifact.root, state)[role], state


def by_hand(artifact, frames, state, **start):
    """One sequence through the model, step by step."""
    outputs = []
    with load_runtime("onnxruntime").open_session(artifact) as session:
        now = start or {
            s.name: np.zeros([1 if isinstance(d, str) else d for d in s.shape], np.float32)
            for s in state.specs
        }
        for frame in frames:
            made = session.run({"frame": frame[None], **now})
            now = {i: made[o] for i, o in state.pairs.items()}
            outputs.append(made)
    return outputs


BOTH = {"h_in": "h_out", "c_in": "c_out"}


@pytest.mark.parametrize(
    ("build", "pairs", "out"),
    [
        (models.streaming_gru, PAIR, "mask"),
        (layered, BOTH, "logits"),
        (lambda: layered(batch=1), BOTH, "logits"),
    ],
    ids=["batch in front", "batch behind the layers", "batch fixed at 1"],
)
def test_outputs_are_those_of_a_loop_by_hand(build, pairs, out, tmp_path):
    artifact = opened(tmp_path, build(), pairs)
    samples, state = data(artifact, {"frame": sequences()})
    with load_runtime("onnxruntime").open_session(artifact) as session:
        run = over_sequences(session.run, state)
        size = 1 if state.alone else len(samples)
        parts = [run(feeds) for _, feeds in samples.batches(size)]
    found = np.concatenate([part[out] for part in parts])
    assert found.shape[:2] == (6, 20)
    for i in (0, 5):
        want = [made[out][0] for made in by_hand(artifact, sequences()[i], state)]
        np.testing.assert_allclose(found[i], want, rtol=1e-5, atol=1e-6)
    assert set(parts[0]) == {out}


def test_a_cache_grows_from_nothing(tmp_path):
    artifact = opened(tmp_path, cache(), {"past": "present"})
    frames = sequences(features=4)
    samples, state = data(artifact, {"frame": frames})
    with load_runtime("onnxruntime").open_session(artifact) as session:
        found = over_sequences(session.run, state)(samples.feeds(range(6)))["mean"]
    want = frames.cumsum(axis=1) / np.arange(1, 21)[:, None]
    np.testing.assert_allclose(found, want, rtol=1e-5)
    steps = Steps(samples, state)
    assert steps.ragged
    steps.original = artifact
    lengths = {steps.feeds([i])["past"].shape[1] for i in range(len(steps))}
    assert lengths == set(range(20))


@pytest.mark.parametrize("batch", ["batch", 1])
def test_single_steps_have_the_original_s_state(batch, tmp_path):
    artifact = opened(tmp_path, layered(batch), BOTH)
    samples, state = data(artifact, {"frame": sequences()})
    steps = Steps(samples, state, seed=3)
    assert len(steps) == 6 * 20
    assert not np.any(steps.feeds([0])["h_in"])  # the first one needs no model
    steps.original = artifact
    place = next(i for i, (n, at) in enumerate(steps.places) if (n, at) == (4, 13))
    feeds = steps.feeds([place])
    before = by_hand(artifact, sequences()[4], state)[12]
    np.testing.assert_allclose(feeds["h_in"], before["h_out"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(feeds["frame"][0], sequences()[4, 13])


def test_batches_of_steps_fit_the_model(tmp_path):
    artifact = opened(tmp_path, layered(), BOTH)
    samples, state = data(artifact, {"frame": sequences()})
    steps = Steps(samples, state)
    steps.original = artifact
    assert batch_range(artifact.inputs)[0] == 1
    indices, feeds = next(steps.batches(16))
    assert (len(indices), feeds["frame"].shape, feeds["c_in"].shape) == (16, (16, 8), (2, 16, 24))
    with load_runtime("onnxruntime").open_session(artifact) as session:
        assert session.run(feeds)["logits"].shape == (16, 10)


def test_long_data_is_cut_in_steps_before_sequences(tmp_path):
    artifact = opened(tmp_path, layered(), BOTH)
    samples, state = data(artifact, {"frame": sequences(100, 300)})
    places = Steps(samples, state).places
    assert len(places) == stateful.MOST_STEPS
    assert len({i for i, _ in places}) == 100
    assert max(at for _, at in places) == stateful.MOST_RUNS // 100 - 1


def test_the_data_may_give_the_first_state(tmp_path):
    artifact = opened(tmp_path, layered(), BOTH)
    rng = np.random.default_rng(5)
    start = {name: rng.random((6, 2, HIDDEN), dtype=np.float32) for name in BOTH}
    samples, state = data(artifact, {"frame": sequences(), **start})
    with load_runtime("onnxruntime").open_session(artifact) as session:
        found = over_sequences(session.run, state)(samples.feeds(range(6)))["logits"]
    own = {name: array[2][:, None] for name, array in start.items()}
    want = [made["logits"][0] for made in by_hand(artifact, sequences()[2], state, **own)]
    np.testing.assert_allclose(found[2], want, rtol=1e-5, atol=1e-6)


def test_fingerprints_tell_sequences_and_pairs_apart(tmp_path):
    artifact = opened(tmp_path, layered(), BOTH)
    samples, state = data(artifact, {"frame": sequences()})
    other, _ = data(artifact, {"frame": sequences(seed=1)})
    found = {
        Steps(samples, state).fingerprint,
        Steps(other, state).fingerprint,
        Steps(samples, replace(state, pairs={"h_in": "c_out", "c_in": "h_out"})).fingerprint,
        samples.fingerprint,
    }
    assert len(found) == 4


@pytest.mark.parametrize(
    ("pairs", "what"),
    [
        ({"h_inn": "h_out"}, "did you mean 'h_in'"),
        ({"h_in": "h_ou"}, "did you mean 'h_out'"),
        ({"h_in": "logits"}, "different forms"),
        ({"h_in": "h_out", "c_in": "h_out"}, "named twice"),
    ],
)
def test_wrong_pairs_are_usage_errors(pairs, what, tmp_path):
    with pytest.raises(UsageError, match=what):
        opened(tmp_path, layered(), pairs)


def test_a_fixed_batch_above_one_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no batch axis that sequences"):
        opened(tmp_path, layered(batch=4), BOTH)


def test_sequences_without_their_steps_say_what_is_missing(tmp_path):
    artifact = opened(tmp_path, layered(), BOTH)
    with pytest.raises(UsageError, match=r"frame float32\[batch, steps, 8\]"):
        data(artifact, {"frame": sequences()[:, 0]})


def test_batches_are_told_from_layers():
    def spec(name, *shape):
        return TensorSpec(name, "float32", shape)

    assert batch_range([spec("x", "n", 8), spec("h", 2, "n", 4)])[0] == 1
    assert batch_range([spec("x", 1, 8), spec("h", 2, 1, 4)]) == (1, 1)
    assert batch_range([spec("x", 4, 8), spec("y", 4)]) == (4, 4)


def test_drift_grows_with_the_steps_and_loops_short_data(tmp_path):
    artifact = opened(tmp_path, layered(), BOTH)
    (tmp_path / "b").mkdir()
    rough = layered()
    for tensor in rough.graph.initializer:
        if tensor.name.startswith(("W", "R")):
            values = np.round(np.frombuffer(tensor.raw_data, np.float32) * 10) / 10
            tensor.raw_data = values.astype(np.float32).tobytes()
    other = opened(tmp_path / "b", rough, BOTH)
    samples, state = data(artifact, {"frame": sequences(3, 30)})
    engine = load_runtime("onnxruntime")
    with engine.open_session(artifact) as a, engine.open_session(other) as b:
        same = drift(a.run, a.run, (state, state), samples)
        found = drift(a.run, b.run, (state, state), samples)
    assert [row.after for row in found] == [1, 10, 100, 1000]
    assert {row.output_sqnr_db for row in same} == {300.0}
    assert 0 < found[-1].state_sqnr_db < 60
    assert 0.5 < found[-1].output_cosine < 1
    assert found[0].state_sqnr_db != found[-1].state_sqnr_db


def test_a_state_that_grows_is_run_for_one_sequence(tmp_path):
    artifact = opened(tmp_path, cache(), {"past": "present"})
    samples, state = data(artifact, {"frame": sequences(3, 12)[..., :4]})
    lengths = []

    def run(feeds):
        lengths.append(feeds["past"].shape[1])
        return session.run(feeds)

    with load_runtime("onnxruntime").open_session(artifact) as session:
        rows = drift(run, run, (state, state), samples)
    assert [row.after for row in rows] == [1, 10]
    assert max(lengths) == 11
    (tmp_path / "lstm").mkdir()
    assert not RecurrentState.of(opened(tmp_path / "lstm", layered(), BOTH)).grows


def test_metrics_score_the_last_step_or_each(tmp_path):
    outputs = {"y": np.eye(4, dtype=np.float32)[[[0, 1, 2], [3, 3, 1]]]}  # [2, 3, 4]
    top1 = load_metric("top1", tmp_path)
    last = over_steps(top1, np.array([2, 0]))
    assert last.kind == "binary"
    assert last.observe(outputs, np.array([2, 0])).ravel().tolist() == [1, 0]
    assert last.decide(outputs).tolist() == [2, 1]
    labels = np.array([[0, 1, 0], [3, 3, 1]])
    each = over_steps(top1, labels)
    assert each.kind == "mean"
    np.testing.assert_allclose(each.observe(outputs, labels).ravel(), [2 / 3, 1])
    assert each.decide(outputs).tolist() == [[0, 1, 2], [3, 3, 1]]
    assert over_steps(load_metric("agreement", tmp_path), None).decide(outputs).shape == (2, 3)
    with pytest.raises(UsageError, match="no mean over samples"):
        over_steps(load_metric("f1", tmp_path), labels)


def recurrent_recipe(tmp_path, target, **more):
    models.save(layered(), tmp_path / "net.onnx")
    return load_recipe(
        {
            "model": {"source": str(tmp_path / "net.onnx"), "state": BOTH},
            "targets": {target: more},
            "metric": "agreement",
            "measure": {"step_ms": 10.0, "effort": "quick"},
            "gates": ["agreement>=0%", "sqnr>=-20dB", "speedup>=0", "size_reduction>=0"],
        }
    )


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_run_carries_state_from_calibration_to_the_report(target, tmp_path):
    if load_runtime(target).missing():
        pytest.skip(f"needs {target}")
    steps = {
        "onnxruntime": ["to_onnxruntime", "quantize_static", {"quantize_dynamic": {"least": 1}}],
        "openvino": ["to_openvino", "quantize_static", "quantize_weights"],
    }
    result = compress(
        None,
        recurrent_recipe(tmp_path, target, steps=steps[target]),
        calibration={"frame": sequences(8, 25)},
        evaluation={"frame": sequences(8, 25, seed=1)},
        out=tmp_path / "out",
        store=tmp_path / "store",
        effort="quick",
    )
    found = result.record.target(target).candidate("candidate")
    assert found.failure is None
    assert [row.after for row in found.drift] == [1, 10, 100, 1000]
    assert found.drift[-1].output_sqnr_db > 15
    assert found.real_time_factor is not None
    assert 0 < found.real_time_factor < 1
    assert found.comparison.n == 8
    twin = result.record.target(target).candidate("twin")
    assert twin.drift[-1].output_sqnr_db > 60
    assert not [w for w in result.record.warnings if w.startswith("calibration data: only")]
    np.savez(tmp_path / "feeds.npz", frame=sequences(3, 10))
    args = ["bench", str(tmp_path / "out" / target), "--feeds", str(tmp_path / "feeds.npz")]
    assert main([*args, "--effort", "quick"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "After 1,000 steps" in text
    assert "Real-time factor" in text
    assert result.record.recipe["model"]["state"] == BOTH


def test_the_command_line_names_state():
    args = build_parser().parse_args(
        ["run", "net.onnx", "--target", "onnxruntime", "--state", "h_in=h_out", "--state", "c=d"]
    )
    assert recipe_from_flags(args)[0].model.state == {"h_in": "h_out", "c": "d"}
    args.state = ["h_in"]
    with pytest.raises(UsageError, match="not a state"):
        recipe_from_flags(args)


def test_ranges_come_from_real_states(tmp_path):
    """Calibrated on states of zeros, an 8-bit range of the state would be a point."""
    from compressor.quantization.calibration import batches, calibrate
    from exporters._onnx_graph import load_model

    artifact = opened(tmp_path, models.streaming_gru(), PAIR)
    samples, state = data(artifact, {"frame": sequences()})
    steps = Steps(samples, state)
    steps.original = artifact
    model = load_model(artifact.path)
    model.graph.node.append(helper.make_node("Identity", ["h_in"], ["seen"]))
    found = calibrate(model, ["seen"], {}, lambda: batches(steps, artifact.inputs, 120))
    low, high = found.ranges["seen"]
    assert high - low > 0.3
    assert found.samples == 120
