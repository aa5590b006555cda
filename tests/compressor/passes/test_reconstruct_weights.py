"""Reconstructed 4-bit weights: closer outputs than nearest rounding, in the same bytes."""

from __future__ import annotations

import onnx
import pytest

from compressor.quantization.ledger import ledger
from runtimes.errors import UsageError
from runtimes.host import facts
from tests.compressor.quantization.helpers import apply, executed, prepared, refused, sqnr_db

BOTH = pytest.mark.parametrize("target", ["onnxruntime", "openvino"])


@BOTH
@pytest.mark.parametrize(
    "model", ["convnet", "gru", "lstm", "transformer_block", "unet", "hardswish_net"]
)
def test_outputs_move_less_than_by_nearest_rounding(target, model, tmp_path):
    given = prepared(tmp_path, model, target)
    nearest = apply(tmp_path, given, "quantize_weights", share=1.0)
    made = apply(tmp_path, given, "reconstruct_weights", share=1.0)
    assert sqnr_db(given, made) > sqnr_db(given, nearest) + 1
    assert abs(made.size_bytes - nearest.size_bytes) < 100  # names in the facts, no more


@BOTH
def test_under_int8_kernels(target, tmp_path):
    given = prepared(tmp_path, "convnet", target)
    int8 = apply(tmp_path, given, "quantize_static")
    nearest = apply(tmp_path / "n", int8, "quantize_weights", share=1.0)
    made = apply(tmp_path / "r", int8, "reconstruct_weights", share=1.0)
    assert executed(made) == executed(int8)
    assert sqnr_db(given, made) > sqnr_db(given, nearest) + 1


@BOTH
@pytest.mark.parametrize("step", ["quantize_weights", "reconstruct_weights"])
def test_assign_overrides_bits(target, step, tmp_path):
    given = prepared(tmp_path, "mlp", target)
    assign = {"fc1": 8, "fc2": 16, "head": 32}
    made = apply(tmp_path, given, step, assign=assign)
    assert sorted(made.facts["storage"]["bits"].values()) == [8, 16]
    kinds = {row.kind: row.size_bytes for row in ledger(made)}
    assert kinds["weights int8"] == 784 * 64
    assert kinds["weights half"] == 64 * 64 * 2
    assert sqnr_db(given, made) > 35


@BOTH
def test_assign_of_all_but_one(target, tmp_path):
    given = prepared(tmp_path, "mlp", target)
    made = apply(tmp_path, given, "reconstruct_weights", assign={"fc2": 32, "head": 32, "fc1": 4})
    assert list(made.facts["storage"]["bits"].values()) == [4]


@BOTH
def test_a_name_nothing_goes_by_is_said(target, tmp_path):
    given = prepared(tmp_path, "mlp", target)
    made = apply(tmp_path, given, "quantize_weights", assign={"fc3": 4})
    assert any("no weight here is called fc3; did you mean fc" in n for n in made.facts["notes"])


@BOTH
def test_a_width_that_cannot_be_stored(target, tmp_path):
    given = prepared(tmp_path, "mlp", target)
    with pytest.raises(UsageError, match="5 bits cannot be stored"):
        refused(given, "reconstruct_weights", assign={"fc1": 5})


def test_blocks_lower_the_error_of_uneven_rows(tmp_path):
    given = prepared(tmp_path, "transformer_block")
    whole = apply(tmp_path / "a", given, "reconstruct_weights", share=1.0)
    blocks = apply(tmp_path / "b", given, "reconstruct_weights", share=1.0, block=16)
    assert executed(blocks) == executed(given)
    assert sqnr_db(given, blocks) > sqnr_db(given, whole)
    assert whole.size_bytes < blocks.size_bytes < given.size_bytes


@pytest.mark.parametrize("step", ["quantize_weights", "reconstruct_weights"])
def test_weights_under_if_are_stored(step, tmp_path):
    given = prepared(tmp_path, "if_subgraph")
    made = apply(tmp_path, given, step, share=1.0)
    assert made.facts["storage"]["share_4_bits"] == 1.0
    assert made.size_bytes < given.size_bytes / 6
    assert sqnr_db(given, made) > 14


def test_a_shared_weight_is_stored_once(tmp_path):
    made = apply(tmp_path, prepared(tmp_path, "shared_weight"), "reconstruct_weights", share=1.0)
    stored = [t for t in onnx.load(str(made.path)).graph.initializer if t.data_type == 22]
    assert sorted(t.name for t in stored) == ["head.weight", "shared.weight"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("model", ["transformer_block", "mlp"])
def test_the_engine_computes_with_blocks(bits, model, tmp_path):
    given = prepared(tmp_path, model)
    made = apply(
        tmp_path, given, "reconstruct_weights", bits=bits, share=1.0, form="computed", block=16
    )
    computed = made.facts["storage"]["computed"]
    nodes = [n for n in onnx.load(str(made.path)).graph.node if n.op_type == "MatMulNBits"]
    assert len(nodes) == len(computed) >= 3
    assert executed(made)["MatMulNBits"] == len(nodes)
    assert executed(made)["Cast"] == executed(given)["Cast"]  # scales in half fold at load
    assert made.size_bytes < given.size_bytes * (bits + 1) / 32 + 6000  # a half for each 16
    assert sqnr_db(given, made) > (20 if bits == 4 else 38)
    nearest = apply(
        tmp_path, given, "quantize_weights", bits=bits, share=1.0, form="computed", block=16
    )
    assert sqnr_db(given, made) > sqnr_db(given, nearest) - 1


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("model", ["transformer_block", "mlp"])
def test_openvino_computes_with_blocks(bits, model, tmp_path):
    given = prepared(tmp_path, model, "openvino")
    options = {"bits": bits, "share": 1.0, "form": "computed", "block": 16}
    made = apply(tmp_path, given, "reconstruct_weights", **options)
    ran, before = executed(made), executed(given)
    # With AMX, OpenVINO 2026.4 unpacks weights of a thousand values at each call.
    amx = any(name.startswith("amx") for name in facts()["isa"])
    unpacked = {"Convert"} if amx and model == "transformer_block" else set()
    assert ran.keys() == before.keys() | unpacked
    assert ran["FullyConnected"] == before["FullyConnected"]
    after, float_ = ((a.root / "model.bin").stat().st_size for a in (made, given))
    assert after < float_ * (bits + 1) / 32 + 3000  # biases, normalization
    assert sqnr_db(given, made) > (20 if bits == 4 else 38)


@BOTH
def test_a_depthwise_kernel_has_a_scale_for_each_channel(target, tmp_path):
    given = prepared(tmp_path, "depthwise", target)
    options = {"share": 1.0, "least": 288, "assign": {"stem": 32, "expand": 32, "project": 32}}
    nearest = apply(tmp_path, given, "quantize_weights", **options, calibrated=False)
    made = apply(tmp_path, given, "reconstruct_weights", **options)
    assert sqnr_db(given, made) > sqnr_db(given, nearest) + 3
