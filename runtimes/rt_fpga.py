"""FPGA artifacts without an FPGA: the same integers from every engine that has something of them.

The engine is the session's device: `numpy` (the reference, always there), `dais` (da4ml's
interpreter of its adder graph), `verilator` (the Verilog, compiled with g++), `gates` (the netlist
that was placed and routed, gate by gate), `hls` (hls4ml's emulator, compiled with g++). How long
they take says nothing of the hardware: its figures are in the artifact's facts, each with what it
is from.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from runtimes.base import Closing, Feeds, LayerPrecision, Outputs, check_feeds
from runtimes.errors import BadArtifact, MissingTool, UsageError
from runtimes.fixed import reference
from runtimes.fixed.spec import Spec, read_spec
from runtimes.fpga import gates, hls, verilator, words
from runtimes.types import Artifact, TensorSpec

FORMATS = frozenset({"fixed", "fpga"})
PACKAGES = ("fixed", "fpga")  # of ours, which travel with it
ENGINES = ("numpy", "dais", "verilator", "gates", "hls")
REV = "1"  # of the reference: scores are kept by it
DAIS = "sim/dais.json"
_EXTRA = "pip install 'edge-compressor[fpga]'"
Integers = Callable[[Mapping[str, Any]], Any]


def missing() -> Optional[str]:
    """Nothing is: numpy computes what the design does."""
    return None


def versions() -> Dict[str, str]:
    """Of the reference."""
    return {"fixed-point reference": REV}


def devices() -> List[str]:
    """Engines that can be used here."""
    found = ["numpy", "gates"]
    found += ["dais"] if find_spec("da4ml") is not None else []
    found += ["verilator"] if verilator.missing() is None else []
    return found + (["hls"] if hls.missing() is None else [])


def open_session(
    artifact: Artifact,
    *,
    threads: int = 1,  # noqa: ARG001 - part of every runtime's signature
    device: str = "numpy",
) -> FpgaSession:
    """Open a `fixed` or `fpga` artifact in the engine `device` (CPU is numpy).

    Raises `UsageError` for an unknown engine, `MissingTool` where it is not installed,
    `BadArtifact` where the artifact has nothing for it.
    """
    name = "numpy" if device == "CPU" else device.lower()
    if name not in ENGINES:
        raise UsageError(
            "unknown engine", where="fpga", expected="one of " + ", ".join(ENGINES), got=device
        )
    return FpgaSession(artifact, name)


class FpgaSession(Closing):
    """A model as integers; inputs and outputs are floats like the original's."""

    def __init__(self, artifact: Artifact, engine: str) -> None:
        self.inputs: Tuple[TensorSpec, ...] = artifact.inputs
        self.outputs: Tuple[TensorSpec, ...] = artifact.outputs
        self.spec = read_spec(artifact.root)
        self.settings: Dict[str, str] = {"engine": engine}
        self._folder: Optional[Any] = None
        self._words: Optional[Integers] = None
        if engine == "dais":
            self._words = _dais(self.spec, _file(artifact, DAIS))
        elif engine == "verilator":
            self._folder = tempfile.TemporaryDirectory(prefix="compress-verilator-")
            source = _file(artifact, "rtl/net.v").parent
            simulator = verilator.Simulator(source, Path(self._folder.name))
            self._words = lambda tensors: simulator.run(self.spec, dict(tensors))
        elif engine == "hls":
            self._folder = tempfile.TemporaryDirectory(prefix="compress-hls-")
            project = _file(artifact, f"{hls.FOLDER}/{hls.TOLD}").parent
            emulator = hls.Emulator(project, self.spec, Path(self._folder.name))
            self._words = lambda tensors: words.out_words(self.spec, emulator.run(tensors))
        elif engine == "gates":
            self._words = _gates(self.spec, artifact)

    def bind(self, feeds: Feeds) -> FpgaCall:
        """Check `feeds` and bring them onto the input's grid."""
        check_feeds(self.inputs, feeds)
        integers = {i.name: reference.quantize(feeds[i.name], i.format) for i in self.spec.inputs}
        return FpgaCall(self.spec, self._words, integers)

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by name for one batch of feeds."""
        call = self.bind(feeds)
        call()
        return call.fetch()

    def close(self) -> None:
        """Remove what was compiled."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class FpgaCall:
    """One inference on bound integers."""

    def __init__(self, spec: Spec, engine: Optional[Integers], integers: Mapping[str, Any]) -> None:
        self._spec, self._engine, self._integers = spec, engine, integers
        self._tensors: Dict[str, Any] = {}

    def __call__(self) -> None:
        """Exactly one pass through the engine."""
        if self._engine is None:
            self._tensors = reference.integers(self._spec, self._integers)
        else:
            self._tensors = words.out_tensors(self._spec, self._engine(self._integers))

    def fetch(self) -> Outputs:
        """The floats that the last pass' integers stand for."""
        return reference.outputs(self._spec, self._tensors)


def layer_precisions(
    artifact: Artifact,
    *,
    feeds: Feeds,  # noqa: ARG001
    threads: int = 1,  # noqa: ARG001
    device: str = "numpy",  # noqa: ARG001
) -> List[LayerPrecision]:
    """The format of every layer, which no engine can depart from."""
    spec = read_spec(artifact.root)
    return [LayerPrecision(one.name, one.op, str(one.format), (one.name,)) for one in spec.layers]


def _file(artifact: Artifact, name: str) -> Path:
    path = artifact.root / name
    if not path.is_file():
        raise BadArtifact(
            f"the artifact has no {name}",
            where=str(artifact.root),
            fix="use the engine numpy, or build it with to_fpga (hls: to_hls)",
        )
    return path


def _dais(spec: Spec, path: Path) -> Integers:
    if find_spec("da4ml") is None:
        raise MissingTool("da4ml is not installed", where="dais", fix=_EXTRA)
    from da4ml.types import CombLogic

    logic = CombLogic.load(path)
    return lambda tensors: words.from_dais(spec, logic, tensors)


def _gates(spec: Spec, artifact: Artifact) -> Integers:
    netlist = gates.Netlist(_file(artifact, gates.FILE))
    stages = int(artifact.facts["stages"])
    return lambda tensors: gates.simulated(netlist, spec, tensors, stages)
