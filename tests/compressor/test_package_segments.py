"""Weights found in model files, and what lies between them coded as copies or left to LZMA."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx")

from compressor.package.coding import code_files  # noqa: E402
from compressor.package.matching import match  # noqa: E402
from compressor.package.segments import find_weights  # noqa: E402
from runtimes.blob import decode  # noqa: E402
from runtimes.coding import INT4, INT8, WORD  # noqa: E402


def test_weights_of_an_onnx_file_are_found_where_they_lie(tmp_path):
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    halves = rng.integers(0, 256, 1152, dtype=np.uint8).tobytes()
    floats = rng.standard_normal(40).astype("float32").tobytes()
    value = helper.make_tensor("k", TensorProto.FLOAT, [40], floats, raw=True)
    result_of = helper.make_tensor_value_info("c", TensorProto.FLOAT, [40])
    constant = helper.make_node("Constant", [], ["c"], value=value)
    inner = helper.make_graph([constant], "inner", [], [result_of])
    graph = helper.make_graph(
        [helper.make_node("If", ["p"], ["y"], then_branch=inner, else_branch=inner)],
        "g",
        [helper.make_tensor_value_info("p", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [40])],
        [
            helper.make_tensor("w", TensorProto.INT4, [16, 16, 3, 3], halves, raw=True),
            helper.make_tensor("small", TensorProto.FLOAT, [1], floats[:4], raw=True),
            helper.make_tensor("b", TensorProto.INT8, [1152], halves, raw=True),
        ],
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    data = path.read_bytes()
    found = find_weights(tmp_path, ["m.onnx"])
    kinds = sorted((t.name, t.kind, t.kernel) for t in found)
    assert kinds == [("b", INT8, 1), ("k", WORD, 1), ("k", WORD, 1), ("w", INT4, 9)]
    for tensor in found:
        wanted = floats if tensor.name == "k" else halves
        assert data[tensor.offset : tensor.offset + tensor.size] == wanted


def test_weights_beside_an_onnx_file_are_found(tmp_path):
    from onnx import TensorProto, external_data_helper, helper

    (tmp_path / "model").mkdir()
    values = np.random.default_rng(0).standard_normal(1000).astype("float32").tobytes()
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1000], values, raw=True)
    graph = helper.make_graph([], "g", [], [], [tensor])
    model = helper.make_model(graph)
    external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, str(tmp_path / "model" / "m.onnx"))
    (found,) = find_weights(tmp_path, ["model/m.onnx", "model/w.bin"])
    assert (found.file, found.size, found.kind) == ("model/w.bin", 4000, WORD)


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x3a\x05ab", b"not a model", b"\x08" * 99])
def test_what_is_no_model_holds_no_weights_and_is_coded_all_the_same(tmp_path, data):
    for name in ("m.onnx", "m.xml", "m.bin", "other"):
        (tmp_path / name).write_bytes(data)
        assert find_weights(tmp_path, [name]) == []
        assert bytes(decode(code_files(tmp_path, [name]), len(data))) == data


def test_what_repeats_is_left_to_lzma(tmp_path):
    from onnx import TensorProto, helper

    table = np.random.default_rng(0).standard_normal(64).astype("float32").tobytes() * 500
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [32_000], table, raw=True)
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert len(code_files(tmp_path, ["m.onnx"])) < 2000


def test_copies_are_found_in_moved_text():
    rng = np.random.default_rng(0)
    old = rng.integers(0, 256, 4000, dtype=np.uint8).tobytes()
    new = b"inserted" + old[1000:3000] + b"changed" + old[:900] + old[3500:]
    copies = match(new, old, [(0, len(old))])
    assert sum(copy.size for copy in copies) > len(new) - 40
    made, at = b"", 0
    for copy in copies:
        made += new[at : at + copy.literals] + old[copy.old : copy.old + copy.size]
        at += copy.literals + copy.size
    assert made + new[at:] == new
