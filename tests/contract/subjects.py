"""What the contract suite runs on: every step and runtime found, and a small real source for each.

A new step or runtime is tested as soon as its file is there. It needs an entry here only where its
defaults cannot work on the common model: options that ask for a real effect, or a step before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.steps import load_step, load_target, parse_options, step_modules, target_names
from exporters.base import Context, Samples, Step, StepSpec, Trial
from runtimes.base import load_runtime, runtime_names
from runtimes.errors import MissingTool
from runtimes.types import Artifact
from tests import models
from tests.step_env import ArraySamples, make_env

STEPS = sorted(step_modules())
RUNTIMES = runtime_names()
FORMATS = {
    "module",
    "exported",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "fixed",
    "fpga",
}
ROLES = {"calibration", "training", "selection"}
FACTORY = "tests.torch_models:tiny_resnet"

# Formats that sources can be made in, options with a real effect, and what comes before.
PREFERRED = ("onnx", "module", "onnxruntime", "openvino", "tensorrt", "fixed")
# The common model fits no part, and as C++ compiles for minutes: tests/exporters has smaller ones.
TOO_LARGE = ("to_fpga", "to_hls")
OPTIONS: dict[str, Mapping[str, Any]] = {
    "prune_channels": {"keep": {"macs": "60%"}, "samples": 40},
    "recover": {"epochs": 8},
    "quantize_mixed": {"speed": False, "samples": 16},  # measured times would not repeat
    "train_quantized": {"epochs": 4, "batch": 16, "weight_bits": 4, "share": 1.0},
    "quantize_dynamic": {"least": 1},
    "quantize_fixed": {"steps": 12, "batch": 16, "weight_bits": 8, "activation_bits": 8},
}
BEFORE: dict[str, tuple[str, ...]] = {"recover": ("prune_channels",)}
MAKES = {
    "openvino": ("to_openvino",),
    "onnxruntime": ("to_onnxruntime",),
    "tensorrt": ("to_tensorrt",),
    "fixed": ("quantize_fixed",),
}


def step_and_options(name: str) -> tuple[Step, Any]:
    """The step, and options under which it does something."""
    spec = StepSpec(name, OPTIONS.get(name, {}))
    return load_step(name), parse_options(spec, name)


def usable(name: str) -> Step:
    """The step; skips the test where a tool of it is not installed."""
    step = load_step(name)
    try:
        step.tools()
    except MissingTool as error:
        pytest.skip(str(error))
    return step


def cases() -> list[tuple[str, str]]:
    """Every step with every format it takes that this suite can make."""
    names = [name for name in STEPS if name not in TOO_LARGE]
    return [(n, f) for n in names for f in PREFERRED if f in load_step(n).ACCEPTS]


def data(given: Artifact, size: int = 64) -> dict[str, Samples]:
    """Calibration, training and selection data for `given`: images where it takes them."""
    made = {}
    for seed, role in enumerate(sorted(ROLES)):
        images = models.fashion_like(size, seed=seed)
        labels = images.pop("labels").tolist()
        if [spec.name for spec in given.inputs] != ["image"]:
            images = noise(given, size, seed)
        made[role] = ArraySamples(images, labels)
    return made


def noise(given: Artifact, size: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Feeds in the range that the test models expect: floats in 0-1, integers in 0-9."""
    rng = np.random.default_rng(seed)
    made = {}
    for spec in given.inputs:
        shape = [{"batch": size}.get(d, 6) if isinstance(d, str) else d for d in spec.shape]
        whole = spec.dtype.startswith("int")
        array = rng.integers(0, 10, shape) if whole else rng.random(shape)
        made[spec.name] = array.astype(spec.dtype)
    return made


def context(name: str, fmt: str = "onnx") -> Context:
    """As in a run for one target: the step's own, the format's, or the first one with integers."""
    known = target_names()
    with_integers = [t for t in known if load_target(t).scheme]
    own = [t for t in (name.removeprefix("to_"), fmt) if t in known]
    found = load_target((own or with_integers)[0])
    return Context(
        target=found.name, scheme=found.scheme, width_multiple=4, dims={"batch": 2}, device="CPU"
    )


def onnx_artifact(root: Path, name: str) -> Artifact:
    """One of the test models as the `onnx` artifact a run would make of it."""
    from compressor.sources import SourceSpec, open_source

    root.mkdir(parents=True)
    given = models.save(models.ALL[name](), root / "given.onnx")
    made = root / "artifact"
    made.mkdir()
    spec = SourceSpec(model=given, weights=None, inputs={}, outputs=None, base_dir=root, shapes={})
    return open_source(spec, made)


def module_artifact(root: Path) -> Artifact:
    """A small residual torch module."""
    pytest.importorskip("torch", reason="modules need the torch extra")
    import torch

    from compressor.modules import write_module
    from runtimes.types import TensorSpec
    from tests import torch_models

    torch.manual_seed(0)
    module = torch_models.tiny_resnet().eval()
    inputs = [TensorSpec("image", "float32", tuple(torch_models.INPUTS["tiny_resnet"]["image"]))]
    outputs = [TensorSpec("logits", "float32", ("batch", 10))]
    root.mkdir(parents=True)
    return write_module(
        root,
        module,
        inputs,
        outputs,
        factory=FACTORY,
        facts={"dims": {"batch": 2}},
    )


def factory() -> Any:
    """Builds the untouched torch module."""
    from tests import torch_models

    return torch_models.tiny_resnet()


def source(tmp_path: Path, fmt: str, name: str = "convnet") -> Artifact:
    """The common model in format `fmt`."""
    if fmt == "module":
        return module_artifact(tmp_path / "module")
    artifact = onnx_artifact(tmp_path / f"onnx-{name}", name)
    for step in MAKES.get(fmt, ()):
        usable(step)
        artifact = run(tmp_path, step, artifact, label=f"make-{step}-{name}")
    return artifact


def subject(tmp_path: Path, name: str, fmt: str) -> Artifact:
    """What step `name` is given: the common model, after the steps that must come before it."""
    usable(name)
    artifact = source(tmp_path, fmt)
    for before in BEFORE.get(name, ()):
        artifact = run(tmp_path, before, artifact, label=f"before-{before}")
    return artifact


def env_of(tmp_path: Path, name: str, given: Artifact, label: str) -> Any:
    """An `Env` for step `name`."""
    return make_env(
        tmp_path,
        reference=source(tmp_path / f"{label}-reference", "module")
        if given.format == "module"
        else given,
        data=data(given),
        factory=factory if given.format == "module" else None,
        context=context(name, given.format),
        name=label,
        on_trial=lambda made: Trial(1.0, made.size_bytes, drop=0.0),
    )


def run(tmp_path: Path, name: str, given: Artifact, label: str = "run") -> Artifact:
    """Run step `name` on `given` in folders of its own."""
    step, options = step_and_options(name)
    return step.run(given, options, env_of(tmp_path, name, given, label))


def bytes_of(root: Path) -> str:
    """Digest over every file below `root`, names included."""
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def field_names(options: Any) -> list[str]:
    """Fields of an `Options` dataclass."""
    return [field.name for field in dataclasses.fields(options)]


def opened(artifact: Artifact) -> Any:
    """A session on `artifact` in the first runtime that takes it; skips where there is none."""
    for name in RUNTIMES:
        runtime = load_runtime(name)
        if artifact.format in runtime.FORMATS and runtime.missing() is None:
            return open_session(runtime, artifact)
    return pytest.skip(f"no runtime here opens {artifact.format}")


def open_session(runtime: Any, artifact: Artifact, **options: Any) -> Any:
    """A session; a torch module is rebuilt from the user's own code, as a run does."""
    if artifact.format == "module":
        from compressor.modules import load_module

        options["build"] = load_module
    return runtime.open_session(artifact, **options)


def images(batch: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    """Feeds for the common model."""
    return {"image": models.fashion_like(batch, seed=9)["image"]}
