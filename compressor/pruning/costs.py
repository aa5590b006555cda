"""What a pruned module would cost, before it is pruned; and what it does cost.

Rules. MACs: multiply-accumulates of one sample in convolutions, linear layers, recurrent layers
and matrix products (torch's `FlopCounterMode`, half its count); additions, activations, norms and
pooling are not counted. Params: elements of all parameters, tied ones once. Bytes: parameters and
persistent buffers, tied ones once, in their own dtypes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from compressor.pruning import recurrent
from compressor.pruning.graph import ChannelGroup, spread
from compressor.pruning.removal import IN_SIZES, OUT_SIZES, cuts, remove
from compressor.sources.torch_io import call, plain_attention

if TYPE_CHECKING:
    from torch import Tensor, nn

Measure = Literal["macs", "params", "bytes"]
MEASURES: tuple[Measure, ...] = ("macs", "params", "bytes")
Removed = Mapping[str, int]  # group name → number of channels removed


@dataclass(frozen=True)
class Factor:
    """One axis of a cost: its length and, per group, how much of it one channel stands for."""

    length: int
    per_channel: tuple[tuple[str, float], ...]

    def left(self, removed: Removed) -> float:
        """The fraction of the axis that stays, 0–1."""
        gone = sum(removed.get(group, 0) * each for group, each in self.per_channel)
        return 1.0 - gone / self.length


Term = tuple[float, tuple[Factor, ...]]


@dataclass(frozen=True)
class CostModel:
    """A sum of terms, each a base cost times the fractions left of the axes it depends on."""

    terms: tuple[Term, ...]

    def __call__(self, removed: Removed) -> float:
        """The cost once `removed` channels are gone."""
        total = 0.0
        for base, factors in self.terms:
            left = base
            for factor in factors:
                left *= factor.left(removed)
            total += left
        return total


def count(module: nn.Module, example: Sequence[Tensor], measure: Measure) -> int:
    """MACs of one sample, parameters, or bytes of `module`, by the rules above."""
    if measure == "macs":
        return sum(layer_macs(module, example).values())
    if measure == "params":
        return int(sum(p.numel() for p in module.parameters()))
    stored = {id(t): t for t in module.state_dict(keep_vars=True).values()}
    return int(sum(t.numel() * t.element_size() for t in stored.values()))


@dataclass(frozen=True)
class Macs:
    """Of one module by itself: all, and those of products without weights (attention)."""

    whole: int
    products: int


def layer_macs(module: nn.Module, example: Sequence[Tensor]) -> dict[str, int]:
    """Module name → MACs of one sample in that module itself; "" holds what no layer owns."""
    return {name: macs.whole for name, macs in _counted(module, example).items()}


def _counted(module: nn.Module, example: Sequence[Tensor]) -> dict[str, Macs]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    samples = max(1, int(example[0].shape[0])) if example[0].dim() else 1
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _unfused(), counter:
        call(module.eval(), example)
    root = type(module).__name__
    flops = {_name(key, root): ops for key, ops in counter.get_flop_counts().items()}
    sums = [
        {name: sum(v for op, v in ops.items() if any(w in str(op) for w in words))
         for name, ops in flops.items()}
        for words in (("",), ("bmm", "attention"))
    ]  # fmt: skip
    own = [
        {name: value - sum(totals[child] for child in _counted_below(module, name, totals))
         for name, value in totals.items()}
        for totals in sums
    ]  # fmt: skip
    return {
        name: Macs(value // (2 * samples), own[1][name] // (2 * samples))
        for name, value in own[0].items()
        if value > 0
    }


@contextmanager
def _unfused() -> Iterator[None]:
    """The counter does not know the fused recurrent and encoder kernels."""
    import torch

    with warnings.catch_warnings(), plain_attention():
        warnings.simplefilter("ignore")  # the flags themselves warn
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _name(key: str, root: str) -> str:
    return "" if key in ("Global", root) else key.removeprefix(root + ".")


def _counted_below(module: nn.Module, name: str, totals: Mapping[str, int]) -> Iterator[str]:
    """The nearest counted modules inside `name`: a ModuleList is never called, what it holds is."""
    for child, _ in module.get_submodule(name).named_children():
        path = f"{name}.{child}" if name else child
        if path in totals:
            yield path
        else:
            yield from _counted_below(module, path, totals)


def cost_model(
    module: nn.Module,
    example: Sequence[Tensor],
    groups: Sequence[ChannelGroup],
    measure: Measure,
) -> CostModel:
    """How `measure` depends on the number of channels removed from each of `groups`."""
    sides = _sides(module, groups)
    if measure == "macs":
        counted = _counted(module, example)
        terms = _product_terms(module, example, groups, counted)
        for name, macs in counted.items():
            terms += _layer_terms(module, sides, name, macs.whole - macs.products)
    else:
        terms = _tensor_terms(module, sides, measure)
    return CostModel(tuple(terms))


Sides = dict[tuple[str, str], Factor]


def _layer_terms(module: nn.Module, sides: Sides, name: str, macs: int) -> list[Term]:
    """Of a recurrent layer one term a matrix; all others are one term."""
    from torch import nn

    layer = module.get_submodule(name)
    if not isinstance(layer, nn.RNNBase):
        return [(float(macs), _factors(sides, name, ("out", "in", "inner")))]
    tensors = _tensor_factors(module, sides)
    weights = {k: p for k, p in layer.named_parameters() if p.dim() == 2}
    whole = sum(p.numel() for p in weights.values())
    return [(macs * p.numel() / whole, tensors.get(f"{name}.{k}", ())) for k, p in weights.items()]


def _product_terms(
    module: nn.Module,
    example: Sequence[Tensor],
    groups: Sequence[ChannelGroup],
    counted: Mapping[str, Macs],
) -> list[Term]:
    """Products without weights (attention, an adjacency): nothing says which axes are channels.

    So each group in turn loses half, and what the products then cost is counted.
    """
    before = {name: macs.products for name, macs in counted.items() if macs.products}
    saved: dict[str, list[tuple[str, float]]] = {name: [] for name in before}
    for group in groups if before else ():
        smaller, gone = copy.deepcopy(module), spread(group, range(group.units // 2))
        remove(smaller, [group], {group.name: gone})
        after = _counted(smaller, example)
        for name, products in before.items():
            less = products - after[name].products if name in after else products
            if less and gone:
                saved[name].append((group.name, less / products / len(gone)))
    return [(float(before[name]), (Factor(1, tuple(each)),)) for name, each in saved.items()]


def _sides(module: nn.Module, groups: Sequence[ChannelGroup]) -> Sides:
    found: dict[tuple[str, str], list[tuple[str, float]]] = {}
    whole: dict[tuple[str, str], int] = {}  # of what has no length of its own
    for group in groups:
        for member in group.members:
            each = len(set(member.own)) / group.width
            found.setdefault((member.layer, member.side), []).append((group.name, each))
            if member.side in ("tensor", "inner"):
                whole[member.layer, member.side] = len(set(member.own))
    return {
        key: Factor(whole.get(key) or _length(module, *key), tuple(parts))
        for key, parts in found.items()
    }


def _length(module: nn.Module, layer: str, side: str) -> int:
    from torch import nn

    found = module.get_submodule(layer)
    if isinstance(found, nn.RNNBase) and side == "out":
        return recurrent.out_channels(found)
    for name in (*(IN_SIZES if side == "in" else ()), *OUT_SIZES, "embed_dim"):
        if hasattr(found, name):
            return int(getattr(found, name))
    return int(found.normalized_shape[-1])


def _factors(sides: Sides, layer: str, which: Sequence[str]) -> tuple[Factor, ...]:
    return tuple(sides[layer, side] for side in which if (layer, side) in sides)


def _tensor_terms(module: nn.Module, sides: Sides, measure: Measure) -> list[Term]:
    named = dict(module.named_parameters())
    if measure == "bytes":
        named = module.state_dict(keep_vars=True)
    once = {id(t): (name, t) for name, t in reversed(list(named.items()))}
    factors = _tensor_factors(module, sides)
    return [
        (float(t.numel() * (t.element_size() if measure == "bytes" else 1)), factors.get(name, ()))
        for name, t in once.values()
    ]


def _tensor_factors(module: nn.Module, sides: Sides) -> dict[str, tuple[Factor, ...]]:
    """Full tensor name → the factors of its axes."""
    found: dict[str, tuple[Factor, ...]] = {}
    for (layer, side), factor in sides.items():
        names = [layer]
        if side != "tensor":
            dot = f"{layer}." if layer else ""
            names = [dot + name for name, _, _ in cuts(module.get_submodule(layer), side, (0,))]
        for name in names:
            found[name] = (*found.get(name, ()), factor)
    return found
