"""Which layers an engine's conversions stand between, by made-up graphs and by both engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.base import LayerPrecision, load_runtime
from runtimes.neighbours import converts, with_neighbours
from runtimes.onnx_nodes import Node
from tests.compressor.quantization.helpers import apply, feeds_for, prepared


def layer(name: str, op: str) -> LayerPrecision:
    return LayerPrecision(name, op, "float32", (name,) if op in ("Conv", "Relu") else (), 1000)


def test_conversions_and_views_are_looked_through() -> None:
    layers = [
        layer("a", "Conv"),
        layer("r1", "ReorderOutput"),
        layer("s", "Reshape"),
        layer("q", "QuantizeLinear"),
        layer("b", "Conv"),
        layer("c", "Relu"),
    ]
    nodes = [
        Node("a", "Conv", ("x",), ("1",)),
        Node("", "ReorderOutput", ("1",), ("2",)),
        Node("", "Reshape", ("2",), ("3",)),
        Node("", "QuantizeLinear", ("3",), ("4",)),
        Node("b", "Conv", ("4",), ("5",)),
        Node("c", "Relu", ("3",), ("6",)),
    ]
    found = with_neighbours(layers, nodes)
    assert [x.beside for x in found] == [(), ("a", "c", "b"), (), ("a", "b"), (), ()]
    assert with_neighbours(layers, nodes[1:]) == layers


def test_casts_and_transpositions_of_the_source_are_no_conversions() -> None:
    assert not converts(LayerPrecision("cast", "Cast", "float32", ("cast",)))
    assert converts(LayerPrecision("x_token_7", "Transpose", "int8"))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_say_whom_they_convert_for(tmp_path: Path, name: str) -> None:
    made = apply(tmp_path, prepared(tmp_path, "hardswish_net", name), "quantize_static")
    layers = load_runtime(name).layer_precisions(made, feeds=feeds_for(made, 1))
    between = {near for x in layers if converts(x) for near in x.beside}
    assert "stem" in between  # the image is quantized for it
    assert between <= {near for x in layers for near in (x.layer, *x.layers)}
    assert not any(x.beside for x in layers if not converts(x))
