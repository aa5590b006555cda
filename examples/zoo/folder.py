"""Makes a model's folder: weights, ONNX file, data, score, card."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from examples.zoo.about import About

OPSET = 18
THREADS = 1
BATCH = 50  # samples at once when a file is scored
ROLES = ("calibration", "selection", "evaluation")
SIZES = {"batch": 3, "steps": 12, "past": 7}  # of free dimensions while a model is traced


def make(name: str, module: ModuleType, out: Path, *, keep: bool = False) -> dict[str, Any]:
    """Make `out/name` unless it is up to date; return its card.

    With `keep`, weights that lie there are taken as they are and all else is made again; so are
    those of a model that has another's. Finished files are moved into place, the card last.
    """
    folder, digest = out / name, _digest(module)
    before = _card(folder)
    if before.get("digest") == digest and "score" in before and not keep:
        return before
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}-") as place:
        work = Path(place)
        old = out / (module.ABOUT.weights_of or name) / "weights.safetensors"
        seconds = before.get("seconds_trained") if keep else None
        if hasattr(module, "given"):
            module.given(work / "model.onnx")
        elif (keep or module.ABOUT.weights_of) and old.is_file():
            shutil.copyfile(old, work / old.name)
            export(trained(module, old), module.ABOUT, work / "model.onnx")
        else:
            seconds = _train(module, work)
        for role in ROLES:
            np.savez_compressed(work / f"{role}.npz", **getattr(module, role)())
        card = _describe(name, module.ABOUT, work, seconds, digest)
        (work / "card.json").write_text(json.dumps(card, indent=1) + "\n")
        (folder / "card.json").unlink(missing_ok=True)
        for path in sorted(work.iterdir(), key=lambda p: p.name == "card.json"):
            path.chmod(0o644)
            path.replace(folder / path.name)
    return card


def _digest(module: ModuleType) -> str:
    """Of the model's own file; shared ones rarely change what comes out."""
    return hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]


def _card(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def trained(module: ModuleType, weights: Path) -> Any:
    """A model's torch module with the weights of its folder."""
    from safetensors.torch import load_file

    model = module.build()
    model.load_state_dict(load_file(weights))
    return model.eval()


def _train(module: ModuleType, work: Path) -> float | None:
    """Weights and ONNX file; returns processor seconds, None where nothing was trained."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model, start = module.build(), time.process_time()
    module.train(model)
    seconds = round(time.process_time() - start, 1)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, work / "weights.safetensors")
    export(model.eval(), module.ABOUT, work / "model.onnx")
    return seconds if getattr(module, "TRAINED_HERE", True) else None


# ── the ONNX file ────────────────────────────────────────────────────────────────────────────────


def examples(about: About) -> tuple[Any, ...]:
    """Inputs of the right shapes to trace a model with."""
    import torch

    made = []
    for shape, dtype in about.shapes().values():
        sizes = [SIZES[dim] if isinstance(dim, str) else dim for dim in shape]
        whole = dtype.startswith("int")
        made.append(torch.ones(sizes, dtype=torch.int64) if whole else torch.rand(sizes))
    return tuple(made)


def export(model: Any, about: About, path: Path) -> None:
    """Write `model` as ONNX with torch's own exporter, in one file."""
    import torch

    free = {name: _named(shape) for name, (shape, _) in about.shapes().items()}
    given: dict[str, Any] = {"input_names": list(free), "output_names": list(about.outputs)}
    if about.export == "dynamo":
        dims = {dim: torch.export.Dim(dim) for axes in free.values() for dim in axes.values()}
        shapes = tuple({axis: dims[dim] for axis, dim in axes.items()} for axes in free.values())
        given |= {"dynamo": True, "dynamic_shapes": shapes, "external_data": False}
    else:
        rest = {name: _axes_of(name, about) for name in about.outputs}
        given |= {"dynamo": False, "dynamic_axes": {**free, **rest}}
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, examples(about), str(path), opset_version=OPSET, verbose=False, **given
        )


def _named(shape: list[int | str]) -> dict[int, str]:
    return {axis: dim for axis, dim in enumerate(shape) if isinstance(dim, str)}


def _axes_of(output: str, about: About) -> dict[int, str]:
    """A state that comes out has the free axes of the one that went in, the rest have batches."""
    pairs = {result: source for source, result in (about.state or {}).items()}
    return _named(about.shapes()[pairs[output]][0]) if output in pairs else {0: "batch"}


# ── the card ─────────────────────────────────────────────────────────────────────────────────────


def evaluate(about: About, folder: Path) -> tuple[float, int]:
    """(score, samples) of a folder's ONNX file, as `compress run` finds them for the original."""
    from compressor.data import open_data
    from compressor.evaluation import evaluate as score
    from compressor.metrics import load_metric
    from compressor.sources import SourceSpec, open_source
    from compressor.stateful import RecurrentState, over_sequences
    from runtimes.base import load_runtime

    metric = load_metric(about.metric, folder)
    with tempfile.TemporaryDirectory() as work:
        spec = SourceSpec(folder / "model.onnx", state=about.state or {})
        artifact = open_source(spec, Path(work))
        state = RecurrentState.of(artifact)
        inputs = state.sequence_inputs() if state else artifact.inputs
        data = open_data(str(folder / "evaluation.npz"), "evaluation", inputs, folder)
        with load_runtime("onnxruntime").open_session(artifact, threads=THREADS) as session:
            run = over_sequences(session.run, state) if state else session.run
            found = score(run, data, metric, batch=BATCH)
    if metric.kind == "free":
        return 1.0, found.n  # a model agrees with itself
    assert found.value is not None, found.doubts
    return found.value, found.n


def _describe(
    name: str, about: About, folder: Path, seconds: float | None, digest: str
) -> dict[str, Any]:
    score, count = evaluate(about, folder)
    return {
        "name": name,
        "kind": about.kind,
        "architecture": about.architecture,
        "source": about.source,
        "licence": about.licence,
        "metric": about.metric,
        "score": score,
        "n_evaluation": count,
        "state": about.state,
        "inputs": {n: {"shape": s, "dtype": d} for n, (s, d) in about.shapes().items()},
        "outputs": list(about.outputs),
        "bytes": (folder / "model.onnx").stat().st_size,
        "seconds_trained": seconds,
        "digest": digest,
    }
