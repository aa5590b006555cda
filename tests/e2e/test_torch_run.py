"""A torch module through the Python API: pruned, recovered, exported, quantized, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="module sources need the torch extra")

import compressor  # noqa: E402
from runtimes.errors import GateFailed  # noqa: E402
from tests import models, torch_models  # noqa: E402

RECIPE = {
    "model": {"inputs": {"image": ["batch", 1, 28, 28]}, "outputs": ["logits"]},
    "metric": "top1",
    "steps": [
        {"prune_channels": {"keep": {"macs": "60%"}}},
        {"recover": {"minutes": 0.3, "lr": 3e-4}},
    ],
    "targets": {"onnxruntime": {}},
    "gates": ["accuracy_drop<=5%", "size_reduction>=60%", "speedup>=0.1"],
}


@pytest.fixture(scope="module")
def module() -> Any:
    torch.manual_seed(0)
    net, data = torch_models.tiny_resnet(), models.fashion_like(1500, seed=0)
    images, labels = torch.tensor(data["image"]), torch.tensor(data["labels"])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    net.train()
    for _ in range(3):
        for at in range(0, len(images), 100):
            loss = torch.nn.functional.cross_entropy(
                net(images[at : at + 100]), labels[at : at + 100]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def result(module: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("torch")
    return compressor.compress(
        module,
        RECIPE,
        training={"image": models.fashion_like(1500, seed=0)["image"]},
        evaluation=models.fashion_like(1000, seed=1),
        effort="quick",
        out=folder / "out",
        store=folder / "store",
    )


def test_it_is_smaller_and_does_less(result: Any) -> None:
    assert result.verdict == "pass", result.record.targets[0].reason
    (target,) = result.record.targets
    shipped = target.candidate(target.shipped)
    assert shipped.role == "candidate"
    assert shipped.macs <= 0.63 * result.record.reference.macs
    assert shipped.parameters < result.record.reference.parameters
    artifact = result.artifacts["onnxruntime"]
    assert artifact.size_bytes == shipped.size_bytes
    assert sum(row.size_bytes for row in result.ledger["onnxruntime"]) == artifact.size_bytes


def test_a_budget_in_minutes_is_not_reproducible_and_says_so(result: Any) -> None:
    assert not result.record.reproducible
    assert "steps:" in result.record.not_reproducible_because
    lock = (result.out / "recipe.lock.yaml").read_text()
    assert "minutes" not in lock.split("locked:")[0]
    assert "steps:" in lock.split("recover:")[1].split("locked:")[0]


def test_the_module_handed_in_is_untouched(module: Any, result: Any) -> None:
    fresh = torch_models.tiny_resnet()
    assert [p.shape for p in module.parameters()] == [p.shape for p in fresh.parameters()]


def test_the_pruned_module_comes_back(result: Any, module: Any) -> None:
    (digest,) = [s.digest for s in result.record.steps if s.step == "recover"]
    store = Path(result.out).parent / "store"
    roots = [p.parent for p in store.glob("objects/*/*/module.json")]
    loaded = [compressor.load_module(root, torch_models.tiny_resnet) for root in roots]
    sizes = {sum(p.numel() for p in net.parameters()) for net in loaded}
    assert len(roots) == 3  # the source, pruned, recovered
    assert min(sizes) < sum(p.numel() for p in module.parameters())
    assert digest


def test_raise_for_verdict(module: Any, result: Any, tmp_path: Path) -> None:
    result.raise_for_verdict()
    tight = {**RECIPE, "steps": [], "gates": ["size_reduction>=99.9%"]}
    failed = compressor.compress(
        module,
        tight,
        evaluation={k: np.asarray(v[:300]) for k, v in models.fashion_like(300, seed=3).items()},
        effort="quick",
        out=tmp_path / "out",
        store=tmp_path / "store",
    )
    with pytest.raises(GateFailed, match=r"limit 99\.90%"):
        failed.raise_for_verdict()
