from __future__ import annotations

import pytest

from compressor.quantization.keep import Named, kept
from exporters.base import Keep
from runtimes.errors import UsageError

NODES = [
    Named("node_Conv_1", ("Conv",), ("stem.conv.weight", "relu_in")),
    Named("head", ("Gemm", "MatMul"), ("head.weight", "logits")),
    Named("soft", ("Softmax",)),
]


@pytest.mark.parametrize("pattern", ["head", "he*", "head.weight", "logits"])
def test_a_node_is_found_by_any_of_its_names(pattern):
    assert kept(NODES, Keep(float=(pattern,))) == {"head": f"keep.float {pattern}"}


def test_the_layer_a_weight_belongs_to_is_a_name():
    assert list(kept(NODES, Keep(float=("stem.conv",)))) == ["node_Conv_1"]


def test_op_types():
    assert list(kept(NODES, Keep(float_ops=("Gemm", "Softmax")))) == ["head", "soft"]


@pytest.mark.parametrize("pattern", ["haed", "stem.covn.weight"])
def test_a_pattern_that_matches_nothing_names_near_misses(pattern):
    with pytest.raises(UsageError, match=r"no node matches[\s\S]*did you mean (head|stem)"):
        kept(NODES, Keep(float=(pattern,)))


def test_an_op_type_that_is_not_there():
    with pytest.raises(UsageError, match="no op type matches"):
        kept(NODES, Keep(float_ops=("LSTM",)))
