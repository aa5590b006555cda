"""Where rounding loses and training recovers: top-1 and bytes, without and with `train_quantized`.

    nice python benchmarks/qat/run.py [--zoo out/zoo] [--nets resnet mobilenet] [--steps 400]

The ResNet of examples/01 and the MobileNetV3-like net of examples/zoo (its `model.onnx` alone: no
torch module is needed), with all weights in 4 bits, and with one weight scale a tensor. Training is
on images the nets were trained on, without their labels; scores are on the 10,000 test images,
through the engine named. `torch` is the score of the trained graph in torch, whose rounding the
file must reproduce. One thread; seconds are processor time. Writes results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
sys.path.insert(0, str(HERE.parents[1] / "examples" / "01_image_classifier"))

from compressor.env import Silent, StepEnv  # noqa: E402
from compressor.steps import load_step, load_target, parse_options  # noqa: E402
from exporters.base import Context, StepSpec, Trial  # noqa: E402
from runtimes.base import load_runtime  # noqa: E402
from runtimes.types import Artifact, TensorSpec  # noqa: E402
from tests.step_env import ArraySamples  # noqa: E402

Steps = list[tuple[str, dict[str, Any]]]
W4 = ("quantize_weights", {"bits": 4, "share": 1.0})


def rows(target: str, steps: int) -> dict[str, tuple[Steps, bool]]:
    """Name → the steps after the export, and whether weights have one scale a tensor."""
    own: tuple[str, dict[str, Any]] = ("to_" + target, {})
    file = ("to_openvino", {"container": "onnx"})
    train = {"steps": steps, "batch": 64}
    four = ("train_quantized", {**train, "weight_bits": 4, "share": 1.0})
    made: dict[str, tuple[Steps, bool]] = {
        "float": ([own], False),
        "INT8": ([own, ("quantize_static", {})], False),
        "4 bits, rounded": ([own, ("quantize_static", {}), W4], False),
        "4 bits, trained": ([own, four] if target == "onnxruntime" else [four, file], False),
    }
    if target == "onnxruntime":
        made |= {
            "4 bits, reconstructed": (
                [own, ("quantize_static", {}), ("reconstruct_weights", {"bits": 4, "share": 1.0})],
                False,
            ),
            "INT8 per tensor": ([own, ("quantize_static", {})], True),
            "INT8 per tensor, trained": ([own, ("train_quantized", {**train})], True),
        }
    return made


def resnet(root: Path, zoo: Path) -> tuple[Artifact, dict[str, ArraySamples], dict[str, Any]]:
    """The module of examples/01, its data by role, and the test set."""
    import fashion_data
    from fashion_resnet import build
    from safetensors.torch import load_file

    from compressor.modules import write_module

    del zoo
    module = build()
    module.load_state_dict(
        load_file(HERE.parents[1] / "examples/01_image_classifier/resnet.safetensors")
    )
    inputs = [TensorSpec("image", "float32", ("batch", 1, 28, 28))]
    outputs = [TensorSpec("logits", "float32", ("batch", 10))]
    facts = {"dims": {"batch": 2}}
    given = write_module(root, module.eval(), inputs, outputs, factory=None, facts=facts)
    roles = {
        "training": ArraySamples({"image": fashion_data.training()["image"]}),
        "calibration": ArraySamples({"image": fashion_data.calibration()["image"]}),
    }
    return given, roles, fashion_data.evaluation()


def mobilenet(root: Path, zoo: Path) -> tuple[Artifact, dict[str, ArraySamples], dict[str, Any]]:
    """The zoo's ONNX file, its data by role, and the test set."""
    from compressor.sources import SourceSpec, open_source
    from examples.zoo.data import fashion_images

    path = zoo / "mobilenet" / "model.onnx"
    spec = SourceSpec(model=path, weights=None, inputs={}, outputs=None, base_dir=root, shapes={})
    given = open_source(spec, root)
    arrays = fashion_images()
    roles = {
        role: ArraySamples({"image": np.ascontiguousarray(arrays[role]["image"])})
        for role in ("training", "calibration")
    }
    return given, roles, arrays["evaluation"]


NETS = {"resnet": resnet, "mobilenet": mobilenet}


def no_trial(artifact: Artifact) -> Trial:
    """No step here searches."""
    raise NotImplementedError(artifact.format)


def run(given: Artifact, steps: Steps, context: Context, roles: Any, root: Path) -> Artifact:
    """`given` through `steps`."""
    from fashion_resnet import build

    artifact = given
    factory = build if given.format == "module" else None
    if given.format == "module":
        steps = [("to_onnx", {}), *steps]
    for number, (name, options) in enumerate(steps):
        folders = [root / f"{number}-{name}" / part for part in ("work", "scratch", "checkpoint")]
        for folder in folders:
            folder.mkdir(parents=True)
        env = StepEnv(
            folders[0], folders[1], folders[2], context, roles, given, factory,
            logging.getLogger("qat"), Silent().update, no_trial,
        )  # fmt: skip
        parsed = parse_options(StepSpec(name, options), name)
        artifact = load_step(name).run(artifact, parsed, env)
    return artifact


def top1(artifact: Artifact, test: dict[str, Any]) -> float:
    """Share of right answers, through the artifact's engine."""
    right = 0
    with load_runtime(artifact.format).open_session(artifact, threads=1) as session:
        for at in range(0, len(test["labels"]), 250):
            found = session.run({"image": np.ascontiguousarray(test["image"][at : at + 250])})
            right += int(
                (next(iter(found.values())).argmax(1) == test["labels"][at : at + 250]).sum()
            )
    return right / len(test["labels"])


def torch_top1(artifact: Artifact, test: dict[str, Any]) -> float:
    """The same for the graph as it was trained: rounding simulated in torch."""
    import torch

    from compressor.training.graph import trainable
    from exporters._onnx_graph import load_model

    module, right = trainable(load_model(artifact.path), {}, False).eval(), 0
    with torch.no_grad():
        for at in range(0, len(test["labels"]), 250):
            batch = torch.from_numpy(np.ascontiguousarray(test["image"][at : at + 250]))
            right += int(
                (module(batch)[0].argmax(1).numpy() == test["labels"][at : at + 250]).sum()
            )
    return right / len(test["labels"])


def measure(net: str, target: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rows of one net on one target."""
    found: dict[str, Any] = {}
    declared = load_target(target)
    for name, (steps, per_tensor) in rows(target, arguments.steps).items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "given").mkdir()
            given, roles, test = NETS[net](root / "given", arguments.zoo)
            assert declared.scheme is not None
            scheme = replace(declared.scheme, weight_per_channel=not per_tensor)
            context = Context(target=target, scheme=scheme, dims={"batch": 2})
            began = time.process_time()
            made = run(given, steps, context, roles, root / "steps")
            seconds = time.process_time() - began
            row = {
                "top1": top1(made, test),
                "bytes": made.size_bytes,
                "seconds": round(seconds, 1),
            }
            if "trained" in name:
                if made.path.suffix == ".onnx":
                    row["torch"] = torch_top1(made, test)
                row["held_out"] = made.facts["training"]["held_out"]
                row["written"] = made.facts["training"]["written"]
        print(net, target, name, row, flush=True)
        found[name] = row
    return found


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("out/zoo"))
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--targets", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for net in arguments.nets:
        for target in arguments.targets:
            results[f"{net} {target}"] = {
                "steps": arguments.steps, "rows": measure(net, target, arguments)
            }  # fmt: skip
            path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
