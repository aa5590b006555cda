from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters._onnx_cleanup import clean
from exporters._onnx_dims import name_free_dims
from exporters._onnx_graph import normalise, specs
from exporters._onnx_opset import quantized_ops, upgrade_opset
from exporters._onnx_write import write_model
from tests import models


def graph(nodes, inputs, outputs, weights=(), opset=21):
    made = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def value(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def same_results(a, b, batch=3):
    feeds = models.feeds(a, batch=batch)
    want, got = models.run(a, feeds), models.run(b, feeds)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)


def test_files_hold_what_protobuf_writes(tmp_path):
    made = [build() for build in models.ALL.values()]
    made[0].metadata_props.add(key="stride", value="32")
    made[0].functions.add(name="f", domain="d")
    made[0].graph.doc_string = "told"
    for model in (*made, onnx.ModelProto(graph=onnx.GraphProto(name="no weights"))):
        write_model(model, tmp_path / "model.onnx")
        assert (tmp_path / "model.onnx").read_bytes() == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", models.ALL)
def test_normal_form_computes_the_same_and_is_stable(name):
    model = models.ALL[name]()
    once, _ = normalise(model)
    twice, notes = normalise(once)
    onnx.checker.check_model(once, full_check=True)
    assert once.SerializeToString() == twice.SerializeToString()
    assert notes == []
    same_results(model, once)


def test_constants_become_raw_initializers():
    model, _ = normalise(models.constant_weights())
    assert all(node.op_type != "Constant" for node in model.graph.node)
    assert all(tensor.HasField("raw_data") for tensor in model.graph.initializer)


def test_every_kind_of_constant_keeps_its_value():
    kinds = {"value_float": 2.0, "value_int": 3, "value_floats": [1.0, 2.0], "value_ints": [4, 5]}
    nodes = [helper.make_node("Constant", [], [k], **{k: v}) for k, v in kinds.items()]
    nodes += [helper.make_node("Cast", [k], [f"{k}_out"], to=1) for k in kinds]
    model, _ = normalise(graph(nodes, [], [value(f"{k}_out") for k in kinds]))
    found = {t.name: numpy_helper.to_array(t).tolist() for t in model.graph.initializer}
    assert found == kinds


def test_duplicate_and_missing_node_names_are_made_unique():
    nodes = [helper.make_node("Relu", [a], [b], name="act") for a, b in ("xa", "ab")]
    nodes.append(helper.make_node("Relu", ["b"], ["y"]))
    model, notes = normalise(graph(nodes, [value("x", 2)], [value("y", 2)]))
    assert [node.name for node in model.graph.node] == ["act", "act_1", "Relu_y"]
    assert "act" in notes[0]


def test_nodes_are_sorted():
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Abs", ["x"], ["a"])]
    model, notes = normalise(graph(nodes, [value("x", 2)], [value("y", 2)]))
    assert [node.op_type for node in model.graph.node] == ["Abs", "Relu"]
    assert "order" in notes[0]


def test_weights_listed_as_inputs_are_inputs_no_more():
    model = models.mlp()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    made, _ = normalise(model)
    assert [v.name for v in made.graph.input] == ["image"]


def test_metadata_of_the_model_stays_and_noise_goes():
    model = models.convnet()
    model.doc_string = model.graph.node[0].doc_string = "traced at /home/me"
    model.graph.node[0].metadata_props.add(key="stack", value="File /home/me/x.py")
    made, _ = normalise(model)
    assert b"/home/me" not in made.SerializeToString()
    assert {e.key for e in made.metadata_props} == set(models.METADATA)


def test_free_dimensions_get_names():
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    model = graph(
        nodes, [value("a", None, 3, None), value("b", None, 3, 1)], [value("y", None, 3, None)]
    )
    name_free_dims(model)
    inputs, outputs = specs(model)
    assert [s.shape for s in inputs] == [("batch", 3, "a_dim2"), ("batch", 3, 1)]
    assert outputs[0].shape == ("batch", 3, "a_dim2")


def test_names_the_model_has_stay():
    model = graph(
        [helper.make_node("Relu", ["a"], ["y"])], [value("a", "N", None)], [value("y", "N", None)]
    )
    name_free_dims(model)
    assert specs(model)[0][0].shape == ("N", "a_dim1")


def test_opset_is_raised_and_checked():
    model = models.convnet(opset=13)
    made, notes = upgrade_opset(model)
    assert made.opset_import[0].version == 21
    assert notes == ["operator set raised from 13 to 21"]
    same_results(model, made)


def test_opset_stays_where_it_cannot_be_raised():
    node = helper.make_node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 2.0])
    model = graph([node], [value("x", 1, 1, 2, 2)], [value("y", 1, 1, 4, 4)], opset=7)
    node2 = helper.make_node("Scan", ["y"], ["z"])
    model.graph.node.append(node2)
    made, notes = upgrade_opset(model)
    assert made is model
    assert "stays 7" in notes[0]


def test_quantized_models_are_recognised():
    assert quantized_ops(models.already_quantized()) == ["DequantizeLinear", "QuantizeLinear"]
    assert quantized_ops(models.convnet()) == []


@pytest.mark.parametrize("name", models.ALL)
def test_cleaning_changes_no_result(name):
    model, _ = normalise(models.ALL[name]())
    made, _ = normalise(model)
    clean(made)
    onnx.checker.check_model(made, full_check=True)
    same_results(model, made)


def test_batch_norms_go():
    model, _ = normalise(models.convnet())
    assert clean(model)["batch norms folded"] == 4
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def norm(x, y):
    parts = {"scale": 2.0, "shift": 1.0, "mean": 0.5, "var": 4.0}
    weights = [numpy_helper.from_array(np.full(3, v, np.float32), n) for n, v in parts.items()]
    return helper.make_node("BatchNormalization", [x, *parts], [y]), weights


@pytest.mark.parametrize("trans", [0, 1])
def test_a_norm_folds_into_a_gemm(trans):
    bn, weights = norm("h", "y")
    w = numpy_helper.from_array(np.arange(9, dtype=np.float32).reshape(3, 3), "w")
    gemm = helper.make_node("Gemm", ["x", "w"], ["h"], transB=trans)
    model, _ = normalise(
        graph([gemm, bn], [value("x", "batch", 3)], [value("y", "batch", 3)], [w, *weights])
    )
    before, _ = normalise(model)
    clean(model)
    assert [node.op_type for node in model.graph.node] == ["Gemm"]
    same_results(before, model)


def test_a_norm_whose_input_is_used_elsewhere_stays():
    bn, weights = norm("h", "y")
    w = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    gemm = helper.make_node("Gemm", ["x", "w"], ["h"])
    outputs = [value("y", "batch", 3), value("h", "batch", 3)]
    model = graph([gemm, bn], [value("x", "batch", 3)], outputs, [w, *weights])
    assert "batch norms folded" not in clean(model)


def test_a_shared_weight_is_copied_before_it_is_folded():
    bn, weights = norm("h", "n")
    w = numpy_helper.from_array(np.arange(9, dtype=np.float32).reshape(3, 3), "w")
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        bn,
        helper.make_node("Gemm", ["n", "w"], ["y"]),
    ]
    model, _ = normalise(
        graph(nodes, [value("x", "batch", 3)], [value("y", "batch", 3)], [w, *weights])
    )
    before, _ = normalise(model)
    clean(model)
    assert len(model.graph.node) == 2
    same_results(before, model)


def test_identities_and_idle_dropouts_go_and_outputs_keep_their_names():
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Dropout", ["b"], ["c"]),
        helper.make_node("Identity", ["c"], ["y"]),
    ]
    model, _ = normalise(graph(nodes, [value("x", 2)], [value("y", 2)]))
    before, _ = normalise(model)
    clean(model)
    assert [node.op_type for node in model.graph.node] == ["Relu"]
    same_results(before, model)


def test_an_input_that_is_passed_straight_on_stays():
    model = graph([helper.make_node("Identity", ["x"], ["y"])], [value("x", 2)], [value("y", 2)])
    assert clean(model) == {}
    assert len(model.graph.node) == 1


def test_identities_around_a_branch_do_not_cut_it_off():
    branch = helper.make_graph([helper.make_node("Relu", ["a"], ["t"])], "t", [], [value("t", 2)])
    other = helper.make_graph([helper.make_node("Abs", ["a"], ["e"])], "e", [], [value("e", 2)])
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other),
    ]
    yes = numpy_helper.from_array(np.array(True), "c")
    model, _ = normalise(graph(nodes, [value("x", 2)], [value("y", 2)], [yes]))
    before, _ = normalise(model)
    assert clean(model) == {"identities removed": 1}
    same_results(before, model)
