from __future__ import annotations

import pytest

from compressor.quantization.onnx_static import planned
from exporters._onnx_cleanup import clean
from exporters._onnx_graph import normalise
from exporters._schemes import ONNXRUNTIME
from exporters.base import Keep
from tests import models


def plan_of(name, keep=None):
    model, _ = normalise(models.ALL[name]())
    clean(model)
    copy, _, plan = planned(model, ONNXRUNTIME, keep or Keep())
    return {node.name: node.op_type for node in copy.graph.node}, plan


@pytest.mark.parametrize("name", ["convnet", "depthwise", "hardswish_net"])
def test_convolutional_nets_run_in_integers_throughout(name):
    ops, plan = plan_of(name)
    assert plan.reasons == {}
    assert set(plan.integer) == set(ops)


def test_pairs_stand_behind_the_activation_not_before_it():
    _, plan = plan_of("convnet")
    assert "stem.relu.out" in plan.roots
    assert not any("stem.bn" in name for name in plan.roots)


def test_what_only_moves_values_shares_their_scale():
    _, plan = plan_of("convnet")
    assert plan.roots["maxpool.out"] == "block.relu2.out"


def test_products_give_float_where_float_reads_them():
    ops, plan = plan_of("transformer_block")
    products = {n for n, op in ops.items() if op in {"MatMul", "Gemm"}}
    assert products - set(plan.reasons) == set(plan.weights)
    assert all(plan.roots[name] == name and name not in plan.made_here for name in plan.roots)


def test_every_float_node_has_a_reason():
    for name in models.ALL:
        ops, plan = plan_of(name)
        assert set(plan.integer) | set(plan.reasons) >= {
            n for n, op in ops.items() if op in {"Conv", "Gemm", "MatMul", "Add", "Softmax", "GRU"}
        }
        assert all(plan.reasons.values())


def test_what_is_kept_stays_float_and_says_why():
    _, plan = plan_of("convnet", Keep(float=("block.conv2",)))
    assert plan.reasons["block.conv2"] == "keep.float block.conv2"
    assert "block.conv2" not in plan.weights
    assert "block.conv2.weight" not in plan.weights.values()
