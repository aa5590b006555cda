"""A model of the zoo with its data and everything that scores it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compressor.judging import Judge
from compressor.recipe import load_recipe
from compressor.session import Request, Session
from compressor.store import Store
from compressor.validate import Evaluation
from exporters.base import Samples
from runtimes.types import Artifact, sha256_of

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("calibration", "selection", "evaluation")
CALIBRATION = 1000  # samples a peer is given at most: steps of sequences may be many more
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
    def opened(self) -> Session:
        """The model, its data and its judge, as a run of the recipe opens them."""
        request = Request(
            recipe=load_recipe(self.recipe([])),
            base_dir=ROOT,
            out=(self.cache / "judge" / self.name).absolute(),
            store=self.store,
        )
        return Session(request)

    @property
    def judge(self) -> Judge:
        """Scores and times as a run does, on the evaluation data."""
        found: Judge = self.opened.judge
        return found

    @property
    def source(self) -> Artifact:
        """The given ONNX as an artifact."""
        found: Artifact = self.opened.engine.source
        return found

    @cached_property
    def base(self) -> Evaluation:
        """The original's outcomes, through ONNX Runtime; also what the judge compares with."""
        self.opened.reference()
        assert self.judge.base is not None
        return self.judge.base

    def lay_out(self, folder: Path, most: int = CALIBRATION) -> tuple[Path, Path]:
        """(model, calibration feeds) as a peer's process reads them, written to `folder`."""
        given = folder / "given"
        given.mkdir(parents=True, exist_ok=True)
        for path in self.files:
            shutil.copy(path, given / path.name)
        assert self.base is not None  # a recurrent model's states are those of the original
        samples: Samples = self.opened.opened.data["calibration"]
        picked = np.unique(np.linspace(0, len(samples) - 1, most).astype(int)).tolist()
        arrays = {
            f"{i}/{name}": array for i in picked for name, array in samples.feeds([i]).items()
        }
        np.savez(folder / "feeds.npz", **arrays)  # type: ignore[arg-type]
        return given / self.model.name, folder / "feeds.npz"


def frozen(case: Case) -> Case:
    """The same model in files of the cache, which nobody writes while it is measured."""
    folder = case.cache / "zoo" / case.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case.folder, folder)
    copy = replace(case, folder=folder)
    if copy.digests != replace(case).digests:
        raise SystemExit(f"{case.name}: its files change, try again later")
    return copy


def zoo(folder: Path, names: list[str], cache: Path, effort: str) -> list[Case]:
    """The models of `folder`, all or those named; `SystemExit` for one that is not there."""
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/card.json"))}
    missing = [name for name in names if name not in found]
    if missing:
        raise SystemExit(f"not in {folder}: {', '.join(missing)}; there: {', '.join(found)}")
    return [Case(found[name], cache, effort) for name in names or found]
