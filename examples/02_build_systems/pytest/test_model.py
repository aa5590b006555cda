"""What this product asks of its model, beside the recipe's gates."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort


def test_every_gate_holds(compressed):
    compressed.raise_for_verdict()


def test_it_fits_the_update_partition(compressed):
    assert compressed.artifacts["onnxruntime"].size_bytes < 100_000


def test_the_product_can_call_it(compressed):
    session = ort.InferenceSession(compressed.artifacts["onnxruntime"].path)
    (logits,) = session.run(["logits"], {"image": np.zeros((2, 1, 28, 28), np.float32)})
    assert logits.shape == (2, 10)
