"""The QONNX file holds the reference's integers in every evaluation; FINN's folding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters import to_qonnx
from exporters.base import where_installed
from exporters.fpga import handoff, qonnx
from runtimes.errors import BadArtifact, UsageError
from runtimes.fixed.spec import Format, read_spec
from tests import fixed_nets
from tests.step_env import make_env

pytest.importorskip("torch", reason="fixed-point models are made with the torch extra")

from compressor.passes.quantize_fixed import Options
from tests.compressor.passes.test_quantize_fixed import made

FEW = Options(weight_bits=4, activation_bits=4, input_bits=4, zeros=0.6, steps=20, batch=16)


def test_every_kind_of_layer_is_exact(tmp_path: Path, monkeypatch) -> None:
    """Skip branch, groups, padded pooling, a mean over nine."""
    source, fixed = made(tmp_path, fixed_nets.residual(), FEW)
    env = make_env(tmp_path, reference=source, name="fpga")
    artifact = to_qonnx.run(fixed, to_qonnx.Options(cycles=60, vectors=40), env)
    assert artifact.facts["checks"]["onnxruntime"] >= 40
    assert ("qonnx" in artifact.facts["checks"]) == bool(where_installed(["qonnx"]))
    graph = onnx.load(artifact.root / handoff.MODEL).graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    quants = [node for node in graph.node if node.op_type == "Quant"]
    for node in quants:
        scale, zero, bits = (values[name] for name in node.input[1:])
        assert np.log2(scale) % 1 == 0
        assert zero == 0
        assert bits >= 1
    folding = json.loads((artifact.root / handoff.FOLDING).read_text("utf-8"))
    assert folding["MVAU_rtl_0"]["SIMD"] * folding["MVAU_rtl_0"]["PE"] == 12  # 9 * 72 / 60
    assert folding["VVAU_rtl_0"]["PE"] >= 1
    assert artifact.facts["figures"]["interval_cycles"]["value"] <= 60
    rows = json.loads((artifact.root / "resources.json").read_text("utf-8"))["layers"]
    assert [row["layer"] for row in rows] == ["c1", "c2", "g", "d", "e"]

    monkeypatch.setattr(handoff, "where_installed", lambda _: {"onnx": "1"})
    rounded = qonnx._Graph.quant

    def floor(graph: qonnx._Graph, value: str, form: Format, rounding: str = "") -> str:
        return rounded(graph, value, form, "FLOOR")

    monkeypatch.setattr(qonnx._Graph, "quant", floor)
    with pytest.raises(BadArtifact, match="gives other numbers in onnxruntime"):
        to_qonnx.run(fixed, to_qonnx.Options(), make_env(tmp_path, reference=source, name="again"))


def test_what_a_file_cannot_say_is_refused_by_layer(tmp_path: Path) -> None:
    _, fixed = made(tmp_path, fixed_nets.dense(), FEW)
    spec = read_spec(fixed.root)
    wide = {**spec.weights, "fc1.bias": spec.weights["fc1.bias"] + (1 << 25)}
    first, *rest = spec.layers
    wraps = replace(first, format=replace(first.format, integer=0, overflow="WRAP"))
    found = qonnx.refused(replace(spec, weights=wide, layers=(wraps, *rest)))
    assert [(one.where, one.fix) for one in found] == [
        ("fc0", "set overflow: SAT"), ("fc1", "use fewer bits"),
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"to_qonnx\.cycles"):
        to_qonnx.Options(cycles=0)
