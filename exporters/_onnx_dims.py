"""Names and sizes of the free dimensions of an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exporters._onnx_graph import graphs
from runtimes.types import TensorSpec


def name_free_dims(model: Any) -> None:
    """Name every anonymous free dimension of the inputs and outputs, in place.

    A free first axis shared by all inputs is `batch`; any other is `<tensor>_dim<axis>`. Names the
    model already has stay.
    """
    inputs = list(model.graph.input)
    taken = {d.dim_param for value in inputs for d in _dims(value) if d.dim_param}
    first = [_dims(value)[0] for value in inputs if _dims(value)]
    if len(first) == len(inputs) and all(map(_anonymous, first)) and "batch" not in taken:
        for dim in first:
            dim.dim_param = "batch"
    for value in inputs:
        _name_rest(value)
    if any(_anonymous(dim) for value in model.graph.output for dim in _dims(value)):
        _infer_outputs(model)
    for value in model.graph.output:
        _name_rest(value)


def _dims(value: Any) -> Sequence[Any]:
    dims: Sequence[Any] = value.type.tensor_type.shape.dim
    return dims


def _anonymous(dim: Any) -> bool:
    # Some old exporters wrote 0 or -1 where they meant "free".
    return not dim.dim_param and dim.dim_value <= 0


def _name_rest(value: Any) -> None:
    for axis, dim in enumerate(_dims(value)):
        if _anonymous(dim):
            dim.dim_param = f"{value.name}_dim{axis}"


def _infer_outputs(model: Any) -> None:
    inferred = {value.name: value for value in inferred_outputs(model)}
    for value in model.graph.output:
        known = inferred.get(value.name)
        if known is None or len(_dims(known)) != len(_dims(value)):
            continue
        for dim, found in zip(_dims(value), _dims(known), strict=True):
            # torch and onnx call what they cannot name unk__0, unk__1, …: no name at all
            if _anonymous(dim) and not found.dim_param.startswith("unk__"):
                dim.CopyFrom(found)


def inferred_outputs(model: Any) -> list[Any]:
    """Output infos as shape inference sees them, from the inputs alone."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return list(onnx.shape_inference.infer_shapes(bare).graph.output)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return []


def fixed_sizes(shapes: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Named dimensions that `--shape` narrows to one size (an int, or min equal to max)."""
    fixed = {}
    for dims in shapes.values():
        for name, bounds in dims.items():
            low, high = (bounds, bounds) if isinstance(bounds, int) else (bounds[0], bounds[-1])
            if low == high:
                fixed[name] = int(low)
    return fixed


def fix_dims(model: Any, sizes: Mapping[str, int]) -> None:
    """Make the named free dimensions static, in place."""
    for graph in graphs(model.graph):
        for value in [*graph.input, *graph.output, *graph.value_info]:
            for dim in _dims(value):
                if dim.dim_param in sizes:
                    dim.dim_value = sizes[dim.dim_param]


def infer_fixed_outputs(model: Any) -> None:
    """Make output dimensions static that follow from static inputs, in place."""
    inferred = {value.name: value for value in inferred_outputs(model)}
    for value in model.graph.output:
        known = inferred.get(value.name)
        if known is None or len(_dims(known)) != len(_dims(value)):
            continue
        for dim, found in zip(_dims(value), _dims(known), strict=True):
            if dim.dim_param and found.dim_value > 0:
                dim.dim_value = found.dim_value


def fix_specs(found: Sequence[TensorSpec], sizes: Mapping[str, int]) -> tuple[TensorSpec, ...]:
    """The specs with the named free dimensions made static."""
    return tuple(
        TensorSpec(
            s.name, s.dtype, tuple(sizes.get(d, d) if isinstance(d, str) else d for d in s.shape)
        )
        for s in found
    )


def set_specs(model: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Give the graph's inputs and outputs exactly these shapes, in place and in this order."""
    for values, wanted in ((model.graph.input, inputs), (model.graph.output, outputs)):
        for value, spec in zip(values, wanted, strict=True):
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in spec.shape:
                if isinstance(size, str):
                    shape.dim.add().dim_param = size
                else:
                    shape.dim.add().dim_value = size
