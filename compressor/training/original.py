"""The original model as a torch module, whatever it was handed in as: what training aims at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exporters._check import onnx_session, run_onnx
from exporters.base import Env
from runtimes.types import Artifact

if TYPE_CHECKING:
    from torch import nn


def original(env: Env) -> nn.Module:
    """The original model as a module: itself, its program, or its ONNX file in ONNX Runtime."""
    if env.reference.format == "module":
        module: nn.Module = env.load_module(env.reference)
        return module
    if env.reference.format == "exported":
        import torch

        program: nn.Module = torch.export.load(str(env.reference.path)).module()
        return program
    return _onnx_module(env.reference, env.context.threads)


def _onnx_module(artifact: Artifact, count: int) -> nn.Module:
    import torch
    from torch import nn

    session = onnx_session(artifact.path, count)
    names = [spec.name for spec in artifact.inputs]

    class Original(nn.Module):  # type: ignore[misc]
        def forward(self, *given: Any) -> tuple[Any, ...]:
            feeds = {
                name: np.ascontiguousarray(x.numpy()) for name, x in zip(names, given, strict=True)
            }
            made = run_onnx(session, feeds)
            return tuple(torch.from_numpy(made[spec.name]) for spec in artifact.outputs)

    return Original()
