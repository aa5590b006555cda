"""Integers by which modules describe their own shapes: read, stored, and set again.

torch's layers keep theirs under well-known names (`out_channels`, `num_features`, …). A module
written by a user may keep more (`heads`, `all_head_size`); those that pruning changed are marked
on the module, so that every later step stores them and `load_module` sets them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Integers (or tuples of integers) by which layers describe the shapes of their own tensors.
SIZES = frozenset(
    """in_channels out_channels groups in_features out_features num_features num_channels num_groups
    normalized_shape num_embeddings embedding_dim num_parameters input_size hidden_size proj_size
    embed_dim kdim vdim num_heads head_dim in1_features in2_features""".split()  # noqa: SIM905
)
_MARK = "sizes_that_pruning_changed"


def is_size(value: Any) -> bool:
    """Whether `value` is a count, or some counts."""
    if isinstance(value, (tuple, list)):
        return bool(value) and all(is_size(v) and not isinstance(v, (tuple, list)) for v in value)
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def resize(layer: nn.Module, name: str, value: Any) -> None:
    """Set the size `name` of `layer`; one that is not in `SIZES` is marked."""
    setattr(layer, name, value)
    if name not in SIZES:
        setattr(layer, _MARK, frozenset({name, *marked(layer)}))


def marked(layer: nn.Module) -> frozenset[str]:
    """The sizes of `layer` beyond `SIZES` that pruning changed."""
    return getattr(layer, _MARK, frozenset())


def layer_sizes(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Module name → its sizes that pruning may have changed, for every module that has any."""
    found = {}
    for name, layer in module.named_modules():
        wanted = SIZES | marked(layer)
        sizes = {k: plain(v) for k, v in vars(layer).items() if k in wanted and is_size(v)}
        if sizes:
            found[name] = sizes
    return found


def valid(sizes: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether `sizes` is what `layer_sizes` gives."""
    entries = [(key, value) for layer in sizes.values() for key, value in layer.items()]
    return all(isinstance(key, str) and is_size(value) for key, value in entries)


def restore(module: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the layers of `module` the stored sizes.

    Raises `LookupError` naming the first that the module does not have as a size.
    """
    layers = dict(module.named_modules())
    for name, attributes in sizes.items():
        for key, value in attributes.items():
            if name not in layers or not is_size(vars(layers[name]).get(key)):
                raise LookupError(f"{name}.{key}")
            if plain(getattr(layers[name], key)) != value:
                resize(layers[name], key, tuple(value) if isinstance(value, list) else value)


def plain(value: Any) -> Any:
    """A size as JSON holds it."""
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else int(value)
