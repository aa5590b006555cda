"""The same job as `compress run recipe.yaml`, from Python: your module and your arrays go in.

python run.py [OUTPUT FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import fashion_data
from fashion_resnet import build
from safetensors.torch import load_file

import compressor

HERE = Path(__file__).parent
RECIPE = {
    "model": {"inputs": {"image": ["batch", 1, 28, 28]}, "outputs": ["logits"]},
    "metric": "top1",
    "steps": [{"prune_channels": {"keep": {"params": "20%"}}}, {"recover": {"epochs": 3}}],
    "targets": {"openvino": {}, "onnxruntime": {}},
    "gates": ["accuracy_drop<=1%", "size_reduction>=95%", "speedup@16>=3.5 over twin"],
    "measure": {"batch": [1, 16], "threads": 1},
}


def main(out: Path) -> None:
    model = build()  # any nn.Module of yours, trained
    model.load_state_dict(load_file(HERE / "resnet.safetensors"))
    result = compressor.compress(
        model,
        RECIPE,
        out=out,
        calibration=fashion_data.calibration(),
        training=fashion_data.training(),
        selection=fashion_data.selection(),
        evaluation=fashion_data.evaluation(),
    )
    for target, artifact in result.artifacts.items():
        print(f"{target}: {artifact.path}, {artifact.size_bytes:,} bytes")
    print(result.verdict)
    result.raise_for_verdict()


if __name__ == "__main__":  # needed: latency is measured in fresh processes
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/fashion-api"))
