"""A delta for a model that is trained on after it was pruned: example 01's module, one epoch more.

    compress run examples/01_image_classifier/recipe.yaml --effort quick -o out/fashion
    python benchmarks/package_coding/trained_on.py out/fashion

`out/fashion/module` is loaded with `compressor.load_module`, trained on with labels and an ordinary
loop, quantized and packed again by the same recipe without its shared steps, and compared with what
`out/fashion` ships. Adds `example_01 trained on/<target>` to results.json, with both scores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXAMPLE = ROOT / "examples" / "01_image_classifier"
for place in (ROOT, EXAMPLE):
    sys.path.insert(0, str(place))

import compressor  # noqa: E402
from benchmarks.package_coding.run import RESULTS, keep, of_delta  # noqa: E402
from benchmarks.stamp import stamp  # noqa: E402
from compressor.record import load_record  # noqa: E402

BATCH, RATE = 128, 1e-4


def trained(folder: Path, epochs: int) -> Any:
    """The module in `folder` after more epochs on the labelled training data."""
    import fashion_data
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = compressor.load_module(folder, search_path=EXAMPLE).train()
    given = fashion_data.training()
    images, labels = (torch.from_numpy(given[name]) for name in ("image", "labels"))
    optimizer = torch.optim.AdamW(module.parameters(), RATE)
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(module(images[part]), labels[part].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module.eval()


def scores(record: Any) -> dict[str, float]:
    """Score of what each target ships."""
    return {t.name: t.candidate(t.shipped).score.value for t in record.targets}


def main() -> None:
    """Train on, compress, compare, write."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="the output folder of example 01")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--recipe", type=Path, default=EXAMPLE / "recipe.yaml")
    flags = parser.parse_args()
    recipe = yaml.safe_load(flags.recipe.read_text())
    recipe.pop("steps")
    inputs = recipe.pop("model")["inputs"]
    recipe["model"] = {"inputs": inputs, "outputs": ["logits"]}
    recipe["gates"] = ["accuracy_drop<=100%", "speedup>=0.1"]
    recipe["targets"] = {name: {} for name in recipe["targets"]}
    module, before = trained(flags.run / "module", flags.epochs), scores(load_record(flags.run))
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as out:
        done = compressor.compress(
            module, recipe, effort="quick", out=out, store=Path(out) / "store"
        )
        after = scores(done.record)
        for target in recipe["targets"]:
            row = of_delta(flags.run / target, Path(out) / target)
            told = {"score_before": before[target], "score": after[target], **stamp()}
            results["deltas"][f"example_01 trained on/{target}"] = row | told
            keep(results)


if __name__ == "__main__":
    main()
