"""compare and explain: what they say of two runs, two artifacts, and one run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from compressor.compare import compare, compare_lines
from compressor.explain import explain
from compressor.record import dump_record
from compressor.result import LayerRow
from runtimes.errors import BadArtifact, UsageError
from runtimes.types import Artifact, TensorSpec
from tests.run_records import HOST, candidate, every_kind, layers, record, target


def runs(tmp_path, a, b):
    for name, made in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        dump_record(made, tmp_path / name)
    return compare(tmp_path / "a", tmp_path / "b")


def other():
    """The same run with INT8 weights in 8 bits and one more layer in INT8."""
    rows = [LayerRow(r.layer, r.op, r.requested, r.requested, r.weight_bytes) for r in layers("x")]
    return target(candidates=[candidate("int8", 0.0024, 3.4, layers=rows)], shipped="int8")


def test_two_equal_runs_differ_in_nothing(tmp_path):
    found = runs(tmp_path, record(), record())
    text = "\n".join(compare_lines(found))
    assert found["same_host"]
    assert "artifact        the same bytes" in text
    assert "informational" not in text
    assert "->" not in text


def test_sizes_scores_times_ledger_and_layers(tmp_path):
    found = runs(tmp_path, record(), record(other()))
    one = found["targets"]["onnxruntime"]
    assert one["size_bytes"] == [202_092, 330_400]
    assert one["ledger"]["weights int8"] == [0, 276_480]
    assert one["layers"] == {"stage1.1.conv1": ["float32", "int8"]}
    text = "\n".join(compare_lines(found))
    for part in ("202 kB -> 330 kB (+63.5%)", "92.57 % -> 92.63 %", "b is 1.16x as fast as a",
                 "stage1.1.conv1: float32 -> int8"):  # fmt: skip
        assert part in text
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found, allow_nan=False))


def test_times_of_another_machine_are_informational(tmp_path):
    found = runs(tmp_path, record(), record(other(), host={**HOST, "cpu": "other"}))
    text = "\n".join(compare_lines(found))
    assert not found["same_host"]
    assert found["host"] == {"cpu": [HOST["cpu"], "other"]}
    assert text.count("(informational)") == 2


def test_targets_of_one_run_only_and_failed_ones(tmp_path):
    text = "\n".join(compare_lines(runs(tmp_path, every_kind()["error"], record())))
    assert "only in a" in text


def write_artifact(root, graph, requested):
    onnx = pytest.importorskip("onnx", reason="needs the core install")
    root.mkdir()
    node = onnx.helper.make_node("Relu", ["x"], ["y"], graph)
    info = [onnx.helper.make_tensor_value_info(n, 1, [1, 4]) for n in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], graph, info[:1], info[1:]))
    (root / "model.onnx").write_bytes(model.SerializeToString())
    specs = [TensorSpec(n, "float32", (1, 4)) for n in "xy"]
    facts = {"requested": [{"layer": "dense", "op": "Relu", "requested": requested, "reason": ""}]}
    return Artifact.write(root, "onnx", "model.onnx", specs[:1], specs[1:], facts)


def test_two_artifacts(tmp_path):
    pytest.importorskip("compressor.quantization.ledger")
    write_artifact(tmp_path / "a", "g", "int8")
    write_artifact(tmp_path / "b", "much_longer_name", "float32")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found["size_bytes"][1] > found["size_bytes"][0]
    assert (
        sum(b - a for a, b in found["ledger"].values())
        == found["size_bytes"][1] - found["size_bytes"][0]
    )
    assert "dense: int8 -> float32" in "\n".join(compare_lines(found))


def test_a_run_and_an_artifact_are_refused(tmp_path):
    write_artifact(tmp_path / "a", "g", "int8")
    (tmp_path / "run").mkdir()
    dump_record(record(), tmp_path / "run")
    with pytest.raises(UsageError, match="run and an artifact cannot be compared"):
        compare(tmp_path / "run", tmp_path / "a")


def test_neither_and_damaged_are_refused(tmp_path):
    with pytest.raises(UsageError, match="neither a run nor an artifact"):
        compare(tmp_path, tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(BadArtifact, match="damaged"):
        compare(tmp_path, tmp_path)


@pytest.mark.parametrize("kind", every_kind())
def test_explain_is_short(kind):
    made = every_kind()[kind]
    lines = explain(made)
    assert len(lines) <= 16 * len(made.targets)
    assert max(map(len, lines)) <= 100


def test_explain_names_bytes_time_drop_and_what_to_try():
    text = " ".join(" ".join(explain(record())).split())
    for part in (
        "weights int4 138 kB (68%)",
        "5.70 kB of weights in stage1.1.conv1 stay float: ONNX Runtime has no INT8 kernel",
        "26% of the layers' time is in stage1.1.conv1, head.fc, in float",
        "half loses 0.08 points, so pruning and recovery cost about that much",
        "and int8-w4 adds 0.22 points",
        "keep: {float: […]} without head.fc",
    ):
        assert part in text


def test_explain_tries_four_bits_where_int8_weights_are_the_bulk():
    text = " ".join(explain(record(other())))
    assert "quantize_weights: {bits: 4}" in text
    assert "pruning and quantization cannot be told apart" in " ".join(text.split())


def test_explain_says_how_many_samples_are_needed():
    assert "61,300 samples" in " ".join(explain(every_kind()["inconclusive"]))


def test_explain_passes_on_the_error_of_a_broken_target():
    assert "operation type is not supported" in explain(every_kind()["error"], "openvino")[0]


def test_explain_prunes_only_what_can_be_trained():
    module = replace(record(), steps=[])
    onnx = replace(module, reference=replace(module.reference, format="onnx"))
    assert "prune_channels" in " ".join(explain(module))
    assert "prune_channels" not in " ".join(explain(onnx))
