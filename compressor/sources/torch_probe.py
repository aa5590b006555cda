"""What a torch module takes and gives: declared inputs, and outputs found by running it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from exporters._torch_call import flatten, output_names, runner
from exporters.base import example_feeds
from runtimes.errors import UsageError
from runtimes.types import Dim, TensorSpec

Shapes = Mapping[str, Mapping[str, Any]]
_SIZES = (8, 32, 64, 128, 224, 5)  # tried for free dimensions that are no batch


def declared_inputs(inputs: Mapping[str, Any], where: str) -> tuple[TensorSpec, ...]:
    """The recipe's `inputs:` as specs; anonymous free dimensions (null or -1) get names."""
    if not inputs:
        raise UsageError(
            "a torch model does not say what its inputs are",
            where=where,
            fix="add `inputs: {image: [batch, 3, 224, 224]}` to the model",
        )
    given = {n: v if isinstance(v, Mapping) else {"shape": v} for n, v in inputs.items()}
    firsts = [list(value["shape"])[:1] for value in given.values()]
    shared = all(first and _is_free(first[0]) for first in firsts)
    return tuple(
        TensorSpec(name, str(v.get("dtype", "float32")), _named(name, v["shape"], shared, where))
        for name, v in given.items()
    )


def _is_free(size: Any) -> bool:
    return size is None or size == -1


def _named(name: str, shape: Sequence[Any], batch: bool, where: str) -> tuple[Dim, ...]:
    dims: list[Dim] = []
    for axis, size in enumerate(shape):
        if _is_free(size):
            dims.append("batch" if batch and axis == 0 else f"{name}_dim{axis}")
        elif isinstance(size, str) or (isinstance(size, int) and size > 0):
            dims.append(size)
        else:
            raise UsageError(
                "not a size",
                where=f"{where}, input {name}",
                expected="a positive number, or a name for a free dimension",
                got=str(size),
            )
    return tuple(dims)


def in_call_order(module: Any, specs: Sequence[TensorSpec], where: str) -> tuple[TensorSpec, ...]:
    """The specs in the order of `forward`, where all of them are named as its parameters are.

    Everyone calls modules by position, so a recipe need not list the inputs in that order.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    order = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    names = [spec.name for spec in specs]
    if not all(name in order for name in names):
        return tuple(specs)
    wanted = order[: len(names)]
    if set(wanted) != set(names):
        skipped = [name for name in wanted if name not in names]
        raise UsageError(
            f"the inputs skip {', '.join(skipped)}, which forward takes before the others",
            where=where,
            expected=", ".join(order),
            got=", ".join(names),
            fix="declare it too, or wrap the module",
        )
    return tuple(sorted(specs, key=lambda spec: order.index(spec.name)))


def probe(
    model: Any,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str] | None,
    shapes: Shapes,
    where: str,
    *,
    vary: bool = True,
) -> tuple[tuple[TensorSpec, ...], dict[str, int]]:
    """Output specs, and sizes of the free dimensions that the model runs at.

    The model runs once as it is and once for each free dimension at another size: an output axis
    that follows carries that dimension's name, one that changes otherwise gets its own. With
    `vary` off only the sizes are looked for.
    """
    run = runner(model, inputs)
    sizes, found = _first_run(run, inputs, shapes, where)
    names = _names([key for key, _ in found], inputs, outputs, where)
    dims: list[list[Dim]] = [list(tensor.shape) for _, tensor in found]
    for name in sizes if vary else ():
        changed, again = _second_run(run, inputs, sizes, name, shapes, where)
        if len(again) != len(found):
            raise UsageError(f"the number of outputs depends on {name}", where=where)
        for i, (_, tensor) in enumerate(again):
            _mark(dims[i], list(found[i][1].shape), list(tensor.shape), name,
                  (sizes[name], changed), names[i])  # fmt: skip
    specs = tuple(
        TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(shape))
        for name, (_, tensor), shape in zip(names, found, dims, strict=True)
    )
    return specs, sizes


def _mark(
    dims: list[Dim],
    before: list[int],
    after: list[int],
    name: str,
    sizes: tuple[int, int],
    out: str,
) -> None:
    for axis, (old, new) in enumerate(zip(before, after, strict=False)):
        if old != new:
            first = isinstance(dims[axis], int)
            follows = (old, new) == sizes
            dims[axis] = name if first and follows else f"{out}_dim{axis}"


def _free(inputs: Sequence[TensorSpec]) -> list[str]:
    return list(dict.fromkeys(d for spec in inputs for d in spec.shape if isinstance(d, str)))


def _bounds(shapes: Shapes, name: str) -> tuple[int, int, int] | None:
    for dims in shapes.values():
        if name in dims and not isinstance(dims[name], int):
            low, opt, high = dims[name]
            return int(low), int(opt), int(high)
    return None


def _first_run(
    run: Any, inputs: Sequence[TensorSpec], shapes: Shapes, where: str
) -> tuple[dict[str, int], list[tuple[str, Any]]]:
    batch = {spec.shape[0] for spec in inputs if spec.shape}
    first: Exception | None = None
    for size in _SIZES:
        sizes = {name: 2 if name in batch else size for name in _free(inputs)}
        for name in sizes:
            bounds = _bounds(shapes, name)
            sizes[name] = max(2, bounds[1]) if bounds and bounds[2] > 1 else sizes[name]
        found = _try(run, inputs, sizes)
        if not isinstance(found, Exception):
            if not found:
                raise UsageError("the module returns no tensor", where=where)
            return sizes, found
        first = first or found
        if set(sizes) <= batch:
            break
    raise UsageError(
        f"the model fails on example inputs: {type(first).__name__}: {_short(first)}",
        where=where,
        got=", ".join(str(spec) for spec in inputs),
        fix="check the shapes and dtypes under `inputs:`",
    )


def _try(run: Any, inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> Any:
    """The outputs at these sizes, or what the user's own code raised, whatever that is."""
    try:
        return run(example_feeds(inputs, sizes, seed=0))
    except Exception as error:  # noqa: BLE001 - user code; the caller reports it
        return error


def _second_run(
    run: Any,
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    name: str,
    shapes: Shapes,
    where: str,
) -> tuple[int, list[tuple[str, Any]]]:
    base, bounds = sizes[name], _bounds(shapes, name)
    others = [bounds[2], bounds[0]] if bounds else [2 * base, base + 1, base // 2]
    last: Any = None
    for size in others:
        if size in (base, 0):
            continue
        last = _try(run, inputs, {**sizes, name: size})
        if not isinstance(last, Exception):
            return size, last
    raise UsageError(
        f"dimension {name} cannot vary: the model runs with {base} and fails with another size: "
        f"{type(last).__name__}: {_short(last)}",
        where=where,
        fix=f"write a number instead of {name} under `inputs:`",
    )


def _short(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""


def _names(
    keys: Sequence[str], inputs: Sequence[TensorSpec], given: Sequence[str] | None, where: str
) -> list[str]:
    if given is None:
        return output_names(keys, [spec.name for spec in inputs])
    if len(given) != len(keys) or len(set(given)) != len(given):
        keyed = [key for key in keys if key]
        close = difflib.get_close_matches(given[0], keyed, n=1) if given else []
        raise UsageError(
            "the output names do not fit the model",
            where=where,
            expected=f"{len(keys)} different names" + (f" ({', '.join(keyed)})" if keyed else ""),
            got=", ".join(given),
            fix=f"did you mean {close[0]}?" if close else "",
        )
    return list(given)


__all__ = ["declared_inputs", "flatten", "in_call_order", "probe"]
