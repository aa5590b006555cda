"""Decoders in 4-bit weights and INT8: with a cache that grows, and attending to an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="module sources need the torch extra")

import compressor  # noqa: E402
from compressor.result import Candidate  # noqa: E402
from examples.zoo import gpt, gpt_cache  # noqa: E402

BOTH = pytest.mark.parametrize("target", ["onnxruntime", "openvino"])


class Translator(torch.nn.Module):
    """An encoder and a decoder, a layer each, that attends to it; words in, scores out."""

    def __init__(self, words: int = 200, width: int = 128) -> None:
        super().__init__()
        self.source, self.given = (torch.nn.Embedding(words, width) for _ in range(2))
        self.model = torch.nn.Transformer(
            width, 4, 1, 1, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = torch.nn.Linear(width, words)

    def forward(self, source: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        mask = torch.nn.Transformer.generate_square_subsequent_mask(given.shape[1])
        memory = self.model.encoder(self.source(source))
        # Told whether the mask is causal, torch does not look, which no export can follow.
        read = self.model.decoder(self.given(given), memory, mask, tgt_is_causal=False)
        return self.head(read)


def run(
    target: str, module: Any, model: dict[str, Any], data: list[dict[str, Any]], folder: Path
) -> tuple[Any, Candidate]:
    """The run and its candidate: everything in INT8, what is stored in 4 bits, judged at 70 %."""
    pytest.importorskip(target, reason=f"needs {target}")
    recipe = {
        "model": model,
        "targets": {target: {"steps": [f"to_{target}", "quantize_static", "reconstruct_weights"]}},
        "gates": ["size_reduction>=70%", "sqnr>=15dB", "speedup>=0.05"],
    }
    made = compressor.compress(
        module.eval(),
        recipe,
        calibration=data[0],
        evaluation=data[1],
        effort="quick",
        out=folder / "out",
        store=folder / "store",
    )
    (found,) = [c for c in made.record.targets[0].candidates if c.role == "candidate"]
    return made, found


def words(count: int, **lengths: int) -> list[dict[str, Any]]:
    """Random sentences for calibration and evaluation."""
    rng = np.random.default_rng(0)
    return [{k: rng.integers(0, count, (8, n)) for k, n in lengths.items()} for _ in range(2)]


def require_small_and_close(made: Any, found: Candidate) -> None:
    """Every gate passed, with integer products and 4-bit weights."""
    assert made.verdict == "pass", made.record.targets[0].reason
    assert found.state == "pass"
    assert any("int4" in row.kind for row in found.ledger)
    asked = [row for row in found.layers if row.requested == "int8"]
    assert sum(row.achieved == "int8" for row in asked) >= 8, asked


@pytest.mark.slow
@BOTH
def test_a_decoder_with_its_cache(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = gpt_cache.build()
    module.layers = module.layers[:2]  # two keys and two values in the state
    about = gpt_cache.ABOUT
    past = ["batch", 4, *about.inputs["past"][2:]]
    model = {
        "inputs": {**about.inputs, "past": past},
        "outputs": about.outputs,
        "state": about.state,
    }
    data = words(gpt.VOCABULARY, tokens=12)
    made, found = run(target, module, model, data, tmp_path)
    require_small_and_close(made, found)
    # The place table ends long before the 1,000 steps that other states are followed for.
    assert [row.after for row in found.drift] == [1, 10]
    assert min(row.state_sqnr_db for row in found.drift) > 15


@pytest.mark.slow
@BOTH
def test_a_decoder_that_attends_to_an_encoder(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"source": ["batch", "source_steps"], "given": ["batch", "given_steps"]}
    tokens = {name: {"shape": shape, "dtype": "int64"} for name, shape in shapes.items()}
    model = {"inputs": tokens, "outputs": ["logits"]}
    data = words(200, source=14, given=9)
    made, found = run(target, Translator(), model, data, tmp_path)
    require_small_and_close(made, found)
