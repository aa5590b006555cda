"""Calling torch's two ONNX exporters, quietly, on a model whose inputs and outputs are tensors."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exporters._torch_call import arguments, flatten
from runtimes.types import TensorSpec

if TYPE_CHECKING:
    from torch import nn

# The dynamo exporter writes slices and reshapes around these, and unrolls `nn.RNN` step by step.
_RECURRENT = ("RNNBase", "RNNCellBase")


def is_recurrent(model: Any) -> bool:
    """True where the model holds an RNN, LSTM or GRU layer."""
    from torch import nn

    if not isinstance(model, nn.Module):
        return False
    kinds = tuple(getattr(nn, name) for name in _RECURRENT)
    return any(isinstance(layer, kinds) for layer in model.modules())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor log lines nor prints of the exporters inside."""
    known = (*logging.root.manager.loggerDict, "torch", "torch.onnx", "torch.export")
    names = [name for name in known if name.partition(".")[0] in {"torch", "onnxscript"}]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        away = io.StringIO()
        with (
            contextlib.redirect_stdout(away),
            contextlib.redirect_stderr(away),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def flat(module: nn.Module) -> nn.Module:
    """`module` behind a wrapper that returns a tuple of tensors, whatever it returned before."""
    from torch import nn

    class Flat(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *tensors: Any) -> Any:
            return tuple(tensor for _, tensor in flatten(self.model(*tensors)))

    return Flat().eval()


def export_dynamo(
    model: Any,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    feeds: Mapping[str, Any],
    opset: int,
) -> Any:
    """The `ModelProto` of the dynamo exporter; raises whatever it raises (see `export_errors`)."""
    import torch

    program = isinstance(model, torch.export.ExportedProgram)
    given: Any = {"tensors": tuple(_free_axes(spec) for spec in inputs)}
    with quiet():
        made = torch.onnx.export(
            model if program else flat(model),
            () if program else arguments(inputs, feeds),
            dynamo=True,
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_shapes=None if program else given,
            opset_version=opset,
            verbose=False,
            external_data=False,
        )
    return made.model_proto


def _free_axes(spec: TensorSpec) -> dict[int, Any]:
    import torch

    free = {axis for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
    return dict.fromkeys(sorted(free), torch.export.Dim.DYNAMIC)


def export_torchscript(
    model: Any,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    feeds: Mapping[str, Any],
    opset: int,
) -> Any:
    """The `ModelProto` of the TorchScript exporter; raises whatever it raises."""
    import onnx
    import torch

    program = isinstance(model, torch.export.ExportedProgram)
    stream = io.BytesIO()
    axes = {
        spec.name: {axis: str(dim) for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in (*inputs, *outputs)
    }
    with quiet():
        torch.onnx.export(
            flat(model.module() if program else model),
            arguments(inputs, feeds),
            stream,
            dynamo=False,
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
            dynamic_axes={name: free for name, free in axes.items() if free},
            opset_version=opset,
            verbose=False,
        )
    return onnx.load_model_from_string(stream.getvalue())


def export_errors() -> tuple[type[Exception], ...]:
    """What the exporters raise where they give up on a model."""
    import torch

    return (
        torch.onnx.errors.OnnxExporterError,
        torch.onnx.OnnxExporterError,
        RuntimeError,
        ValueError,
        TypeError,
        NotImplementedError,
        AttributeError,
        AssertionError,
        KeyError,
        IndexError,
    )
