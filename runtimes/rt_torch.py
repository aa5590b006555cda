"""PyTorch on the CPU: scores a torch model as it is, before any export.

It is the reference an export is checked against, not a deployment target. A `.pt2` opens by itself;
a `module` artifact needs the caller's `build`, because only the host side knows its factory.
"""

from __future__ import annotations

from importlib import util
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from runtimes.base import Closing, Feeds, Outputs, check_feeds
from runtimes.errors import BadArtifact, MissingTool, UsageError
from runtimes.types import Artifact, TensorSpec

FORMATS = frozenset({"module", "exported"})
Build = Callable[[Artifact], Any]


def missing() -> Optional[str]:
    """Why PyTorch cannot be used here; None where it can."""
    if util.find_spec("torch") is None:
        return "torch is not installed: pip install edge-compressor[torch]"
    return None


def versions() -> Dict[str, str]:
    """The engine's version."""
    return {"torch": str(_engine().__version__)}


def open_session(
    artifact: Artifact, *, threads: int = 1, device: str = "CPU", build: Optional[Build] = None
) -> TorchSession:
    """Open a `.pt2`, or a `module` artifact through `build` (artifact → `nn.Module`).

    Threads are PyTorch's own, of the whole process. Raises `UsageError` where `build` is missing
    or the device is not the CPU.
    """
    torch = _engine()
    if device.upper() != "CPU":
        raise UsageError("unknown device", where="torch", expected="CPU", got=device)
    if build is None:
        if artifact.format != "exported":
            raise UsageError(
                "a module artifact needs its factory",
                where=str(artifact.root),
                fix="open_session(artifact, build=compressor.modules.load_module)",
            )
        build = _open_exported
    torch.set_num_threads(threads)
    return TorchSession(artifact, build(artifact), threads)


class TorchSession(Closing):
    """A module in evaluation mode, called with the inputs in the manifest's order."""

    def __init__(self, artifact: Artifact, module: Any, threads: int) -> None:
        self._module = module
        self.inputs: Tuple[TensorSpec, ...] = artifact.inputs
        self.outputs: Tuple[TensorSpec, ...] = artifact.outputs
        self.settings: Dict[str, str] = {"intra_op_num_threads": str(threads)}

    def bind(self, feeds: Feeds) -> TorchCall:
        """Check `feeds` and turn them into tensors."""
        check_feeds(self.inputs, feeds)
        return TorchCall(self._module, self.inputs, self.outputs, feeds)

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by name for one batch of feeds."""
        call = self.bind(feeds)
        call()
        return call.fetch()

    def close(self) -> None:
        """Drop the module."""
        self._module = None


class TorchCall:
    """One forward pass on bound feeds."""

    def __init__(
        self,
        module: Any,
        inputs: Tuple[TensorSpec, ...],
        outputs: Tuple[TensorSpec, ...],
        feeds: Feeds,
    ) -> None:
        torch = _engine()
        self._arguments = [torch.from_numpy(np.array(feeds[spec.name])) for spec in inputs]
        self._module, self._outputs, self._no_grad = module, outputs, torch.inference_mode
        self._result: Any = None

    def __call__(self) -> None:
        """Exactly one forward pass."""
        with self._no_grad():
            self._result = self._module(*self._arguments)

    def fetch(self) -> Outputs:
        """Copies of the outputs of the last pass, by the manifest's names."""
        values = _flat(self._result)
        if len(values) != len(self._outputs):
            raise BadArtifact(
                "the module's outputs are not those of its manifest",
                expected=str(len(self._outputs)),
                got=str(len(values)),
            )
        pairs = zip(self._outputs, values)
        return {spec.name: np.array(value.detach().cpu().numpy()) for spec, value in pairs}


def _engine() -> Any:
    reason = missing()
    if reason:
        raise MissingTool(reason, where="torch", fix="pip install edge-compressor[torch]")
    import torch

    return torch


def _open_exported(artifact: Artifact) -> Any:
    """The callable module of a `.pt2` file, whose graph takes its inputs in order."""
    _engine()
    import torch.export

    return torch.export.load(str(artifact.path)).module()


def _flat(result: Any) -> List[Any]:
    """Tensors of a result (tensor, tuple, list, dict; nested), in order."""
    if isinstance(result, (list, tuple)):
        return [leaf for part in result for leaf in _flat(part)]
    if isinstance(result, dict):
        return [leaf for part in result.values() for leaf in _flat(part)]
    return [result]
