"""Write what somebody without torch would have: `model.onnx`, `calib.npz` and `eval.npz`.

    python export_onnx.py [OUTPUT FOLDER]

It ends with the command that compresses them, which needs no torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from fashion_data import calibration, evaluation
from fashion_resnet import CLASSES, build
from safetensors.torch import load_file

HERE = Path(__file__).parent


def export(path: Path) -> None:
    """The trained model as ONNX: free batch dimension, class names as metadata."""
    model = build()
    model.load_state_dict(load_file(HERE / "resnet.safetensors"))
    program = torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 1, 28, 28),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"names": json.dumps(dict(enumerate(CLASSES)))})
    onnx.save(proto, path)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    export(folder / "model.onnx")
    np.savez_compressed(folder / "calib.npz", **calibration())
    np.savez_compressed(folder / "eval.npz", **evaluation())
    print(
        f"compress run {folder}/model.onnx --target openvino --target onnxruntime "
        f"--calibration {folder}/calib.npz --evaluation {folder}/eval.npz "
        f"--metric top1 --max-drop 0.01 -o {folder}/compressed"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/fashion-onnx"))
