"""The rules for OpenVINO on a legal model written down by hand, and with one thing wrong each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from compressor.quantization.conformance import violations
from compressor.quantization.conformance_openvino import openvino_violations
from exporters._schemes import OPENVINO, OPENVINO_X86
from tests.compressor.quantization.helpers import apply, prepared

pytest.importorskip("openvino", reason="needs the openvino extra")

LEGAL: Mapping[str, Any] = {
    "low": 0.0,
    "high": 1.0,
    "high_out": None,
    "levels": 256,
    "integers": np.full((4, 1, 3, 3), 127, np.int8),
    "scale": np.full((4, 1, 1, 1), 0.01, np.float32),
    "zero": None,
}


def model(**changed: Any) -> Any:
    """FakeQuantize → Convolution with weights as NNCF stores them."""
    from openvino import Model
    from openvino import opset13 as ops

    p = {**LEGAL, **changed}
    image = ops.parameter([1, 1, 8, 8], np.float32, name="image")
    low, high = np.float32(p["low"]), np.float32(p["high"])
    out = high if p["high_out"] is None else np.float32(p["high_out"])
    x = ops.fake_quantize(image, low, high, low, out, p["levels"])
    w = ops.convert(ops.constant(p["integers"]), "f32")
    if p["zero"] is not None:
        w = ops.subtract(w, ops.constant(np.float32(p["zero"])))
    w = ops.multiply(w, ops.constant(np.asarray(p["scale"], np.float32)))
    y = ops.convolution(x, w, [1, 1], [0, 0], [0, 0], [1, 1], name="conv")
    return Model([y], [image])


ILLEGAL = [
    ({"levels": 255}, "image: levels: expected 256, found 255"),
    ({"high_out": 2.0}, "image: bounds: expected the same on both sides"),
    ({"high": np.inf}, "image: bounds: expected finite"),
    ({"low": 0.1}, "image: bounds: expected low ≤ 0 ≤ high"),
    ({"low": -0.0015}, "image: zero: expected a whole level, found 0.382"),
    ({"low": np.zeros((1, 1, 1, 8)), "high": np.ones((1, 1, 1, 8))}, "image: bounds: expected one"),
    ({"integers": np.ones((4, 1, 3, 3), np.uint8)}, "conv: weight type: expected int8"),
    ({"integers": np.full((4, 1, 3, 3), -128, np.int8)}, "conv: weight range: expected ±127"),
    ({"zero": 3.0}, "conv: weight zero point: expected 0"),
    ({"scale": 0.01}, "conv: weight scales: expected 4, found 1"),
    ({"scale": np.full((1, 1, 3, 1), 0.01)}, "conv: weight scales: expected shape (4, 1, 1, 1)"),
    ({"scale": np.array([0.01, 0, 0.01, 0.01]).reshape(4, 1, 1, 1)}, "conv: scale: expected pos"),
]


def test_a_legal_model_conforms() -> None:
    assert openvino_violations(model(), OPENVINO) == []
    assert openvino_violations(model(low=-128 / 255, high=127 / 255), OPENVINO) == []


def test_without_vnni_weights_keep_to_half_of_the_range() -> None:
    for peak, broken in ((63, 0), (-64, 0), (65, 1), (127, 1)):
        made = model(integers=np.full((4, 1, 3, 3), peak, np.int8))
        assert len(openvino_violations(made, OPENVINO_X86)) == broken


@pytest.mark.parametrize(("changed", "text"), ILLEGAL, ids=[text for _, text in ILLEGAL])
def test_an_illegal_model_is_named_with_place_and_rule(changed, text) -> None:
    found = [str(violation) for violation in openvino_violations(model(**changed), OPENVINO)]
    assert any(said.startswith(text) for said in found), found


@pytest.mark.parametrize(
    "name", ["convnet", "depthwise", "hardswish_net", "unet", "gru", "transformer_block"]
)
def test_what_nncf_writes_conforms(name, tmp_path) -> None:
    made = apply(tmp_path, prepared(tmp_path, name, "openvino"), "quantize_static")
    assert violations(made, OPENVINO) == []
