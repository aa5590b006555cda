"""A model of the zoo with its data and everything that scores it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compressor.choosing import choose_metric
from compressor.data import DataSet, open_data
from compressor.env import Silent
from compressor.judging import Judge
from compressor.opening import open_model, typical_dims
from compressor.recipe import MeasureSpec
from compressor.run import SCORING_THREADS
from compressor.sources import SourceSpec
from compressor.store import Store
from runtimes.types import Artifact, sha256_of

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("calibration", "selection", "evaluation")
ENGINES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Case:
    """One folder of the zoo.

    Attributes:
        folder: `model.onnx`, the arrays of each role, `card.json`.
        cache: where the store, the peers' models and our runs lie between calls.
        effort: of the timing.
    """

    folder: Path
    cache: Path
    effort: str = "default"

    @property
    def name(self) -> str:
        """The model's name."""
        return self.folder.name

    @property
    def model(self) -> Path:
        """The given ONNX."""
        return self.folder / "model.onnx"

    @cached_property
    def card(self) -> dict[str, Any]:
        """What the zoo says of it."""
        return dict(json.loads((self.folder / "card.json").read_text()))

    @cached_property
    def files(self) -> list[Path]:
        """The model's files, external data included."""
        import onnx

        from exporters._onnx_graph import tensors

        names = {
            entry.value
            for tensor in tensors(onnx.load(self.model, load_external_data=False))
            for entry in tensor.external_data
            if entry.key == "location"
        }
        return [self.model, *(self.folder / name for name in sorted(names))]

    @property
    def size_bytes(self) -> int:
        """Bytes of the given ONNX with its external data."""
        return sum(path.stat().st_size for path in self.files)

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of everything that is given, by file name."""
        given = [*self.files, *(path for _, path in self.data.items())]
        return {path.name: sha256_of(path) for path in given}

    @property
    def data(self) -> dict[str, Path]:
        """The arrays of each role that is there."""
        found = {role: self.folder / f"{role}.npz" for role in ROLES}
        return {role: path for role, path in found.items() if path.is_file()}

    def recipe(self, gates: list[str]) -> dict[str, Any]:
        """What a user would write for it: both engines with their defaults."""
        made: dict[str, Any] = {
            "model": {"source": str(self.model)},
            "data": {role: str(path) for role, path in self.data.items()},
            "metric": self.card["metric"],
            "targets": {engine: {} for engine in ENGINES},
            "measure": {"batch": [1], "threads": 1, "effort": self.effort},
        }
        if self.card.get("state"):
            made["model"]["state"] = self.card["state"]
        return {**made, "gates": gates} if gates else made

    @cached_property
    def store(self) -> Store:
        """Finished steps and scores, the same for every call."""
        return Store(self.cache / "store")

    @cached_property
    def source(self) -> Artifact:
        """The given ONNX as an artifact."""
        spec = SourceSpec(self.model, None, {}, None, ROOT)
        return open_model(spec, self.store, Silent())[0]

    def samples(self, role: str) -> DataSet:
        """The data of a role."""
        return open_data(str(self.data[role]), role, self.source.inputs, ROOT)

    @cached_property
    def judge(self) -> Judge:
        """Scores and times as a run does, on the evaluation data."""
        evaluation = self.samples("evaluation")
        metric = choose_metric(
            self.card["metric"], evaluation, ROOT, agreement_only=False, evaluator=None
        )
        return Judge(
            store=self.store,
            measure=MeasureSpec(batch=[1], threads=1, effort=self.effort),  # type: ignore[arg-type]
            progress=Silent(),
            samples=evaluation,
            metric=metric,
            evaluator=None,
            seed=0,
            threads=SCORING_THREADS,
            dims=typical_dims(self.source, {"evaluation": evaluation}),
            timing_data=evaluation,
            samples_dir=self.cache / "samples" / self.name,
        )

    def lay_out(self, folder: Path) -> tuple[Path, Path]:
        """(model, calibration feeds) as a peer's process reads them, written to `folder`."""
        given = folder / "given"
        given.mkdir(parents=True, exist_ok=True)
        for path in self.files:
            shutil.copy(path, given / path.name)
        samples = self.samples("calibration")
        arrays = {
            f"{i}/{name}": array
            for i in range(len(samples))
            for name, array in self._filled(samples.feeds([i])).items()
        }
        np.savez(folder / "feeds.npz", **arrays)  # type: ignore[arg-type]
        return given / self.model.name, folder / "feeds.npz"

    def _filled(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """With zeros for a recurrent state the data leaves out, as a peer's user would start."""
        made = dict(feeds)
        for spec in self.source.inputs:
            if spec.name not in made:
                shape = [1 if isinstance(dim, str) else dim for dim in spec.shape]
                made[spec.name] = np.zeros(shape, spec.dtype)
        return made


def zoo(folder: Path, names: list[str], cache: Path, effort: str) -> list[Case]:
    """The models of `folder`, all or those named; `SystemExit` for one that is not there."""
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/card.json"))}
    missing = [name for name in names if name not in found]
    if missing:
        raise SystemExit(f"not in {folder}: {', '.join(missing)}; there: {', '.join(found)}")
    return [Case(found[name], cache, effort) for name in names or found]
