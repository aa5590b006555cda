"""Calling a torch model on numpy feeds, and the tensors of what it returns.

A model is called with its inputs by position, in the artifact's order; dictionaries, tuples and
lists it returns are flattened in their own order. `compressor/sources/torch_io.py` does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from runtimes.types import TensorSpec

Feeds = Mapping[str, "np.ndarray[Any, Any]"]


def flatten(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """The tensors in what a model returned, in order, with the key a dictionary gives them.

    What is neither a tensor nor a container of tensors is left out.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return [(name, value)]
    if isinstance(value, Mapping):
        pairs = [(_join(name, str(key)), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        keys = getattr(value, "_fields", None) or [
            str(i) if name else "" for i in range(len(value))
        ]
        pairs = [(_join(name, key), item) for key, item in zip(keys, value, strict=True)]
    else:
        return []
    return [found for key, item in pairs for found in flatten(item, key)]


def _join(outer: str, inner: str) -> str:
    return "_".join(part for part in (outer, inner) if part)


def output_names(found: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """One unique name an output: the model's own keys, else `output`, or numbered ones."""
    if len(found) == 1 and not found[0]:
        return ["output"]
    names: list[str] = []
    for i, name in enumerate(found):
        wanted = name or f"output_{i}"
        names.append(f"output_{i}_{wanted}" if wanted in {*names, *inputs} else wanted)
    return names


def arguments(inputs: Sequence[TensorSpec], feeds: Feeds) -> tuple[Any, ...]:
    """The feeds as torch tensors, in the order of `inputs`."""
    import torch

    return tuple(torch.from_numpy(np.ascontiguousarray(feeds[s.name])) for s in inputs)


def runner(model: Any, inputs: Sequence[TensorSpec]) -> Callable[[Feeds], list[tuple[str, Any]]]:
    """A function from feeds to (key, tensor) pairs, without gradients.

    `model` is an `nn.Module` or an `ExportedProgram`, whose keyword inputs are put in place.
    """
    import torch
    from torch.utils import _pytree as pytree

    if isinstance(model, torch.nn.Module):
        module, spec = model, None
    else:
        module, spec = model.module(), model.call_spec.in_spec

    def run(feeds: Feeds) -> list[tuple[str, Any]]:
        given = arguments(inputs, feeds)
        args, kwargs = (given, {}) if spec is None else pytree.tree_unflatten(list(given), spec)
        with torch.no_grad():
            return flatten(module(*args, **kwargs))

    return run
