"""Which layers may become pairs: not those the user keeps, not those that cannot."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor.factorization import pairs
from compressor.modules import parameter_names
from compressor.pruning import costs
from compressor.pruning.select import kept_layers
from compressor.pruning.trial import FAILURES, close, sifted
from compressor.sources.torch_io import call
from runtimes.errors import Refusal, Unsupported

if TYPE_CHECKING:
    from torch import Tensor, nn

_READ_FIX = "call the layer and leave its weights to it, or keep it"


@dataclass(frozen=True)
class Candidate:
    """A layer (or a pair made before) that a pair of lower rank may replace.

    Attributes:
        name: in the module.
        layer: itself.
        full: the rank of its matrix: what loses nothing.
        price: what its weights cost now, by measure.
        per_rank: what a pair costs for every rank it has, by measure.
    """

    name: str
    layer: Any
    full: int
    price: Mapping[costs.Measure, float]
    per_rank: Mapping[costs.Measure, float]

    @property
    def most(self) -> int:
        """The highest rank that costs less than the layer does; 0 where none does."""
        least = min(self.price[m] / self.per_rank[m] for m in costs.MEASURES)
        return min(self.full, math.ceil(least - 1e-9) - 1)


def select(
    module: nn.Module, example: Sequence[Tensor], keep: Sequence[str]
) -> tuple[list[Candidate], list[Refusal]]:
    """The layers of `module` that may be factorized, and why the others are left alone.

    `keep` are globs on module names. Raises `Unsupported` where nothing is left to factorize,
    `UsageError` where a glob matches no module.
    """
    kept = kept_layers(module, keep)
    macs = costs.layer_macs(module, example)
    users = parameter_names(module)
    found: list[Candidate] = []
    reasons: list[Refusal] = []
    for name, layer in _layers(module):
        why = f"kept: {name}" if name in kept else _unfit(name, layer, users)
        one = None if why else _candidate(name, layer, macs)
        if one is not None and one.most > 0:
            found.append(one)
        elif not (why or one):
            reasons.append(Refusal(name, "the forward never calls it", _READ_FIX))
        else:
            reasons.append(Refusal(name or type(layer).__name__, why or _too_small(layer)))
    fit, failed = _that_run(module, example, found)
    if not fit:
        raise Unsupported("nothing can be factorized", reasons + failed, where="factorize_layers")
    return fit, reasons + failed


def _layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Linear and convolution layers, a pair as one."""
    from torch import nn

    inside: set[Any] = set()
    for name, layer in module.named_modules():
        if pairs.is_pair(layer):
            inside |= set(layer.children())
            yield name, layer
        elif isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and layer not in inside:
            yield name, layer


def _unfit(name: str, layer: Any, users: Mapping[int, list[str]]) -> str:
    """Why a layer has no pair, by what it is; "" where it may."""
    from torch import nn

    if not name:
        return "it is the whole module, so nothing holds it that could hold a pair"
    if not pairs.is_pair(layer) and not pairs.splittable(layer):
        grouped = isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1
        kind = f"a {type(layer).__name__} is left alone"
        return "a grouped convolution: each group is small already" if grouped else kind
    if any(end._forward_hooks or end._forward_pre_hooks for end in pairs.ends(layer)):
        return "hooks are attached to it"
    others = [u for p in layer.parameters() for u in users[id(p)] if not u.startswith(name + ".")]
    if others:
        return f"its weights are tied: {', '.join(others)}"
    dtypes = {p.dtype for p in layer.parameters()}
    return "" if all(d.is_floating_point for d in dtypes) else f"its weights are {dtypes}"


def _candidate(name: str, layer: Any, macs: Mapping[str, int]) -> Candidate | None:
    """None where the layer is never called."""
    inside = [name, f"{name}.reduce", f"{name}.expand"] if pairs.is_pair(layer) else [name]
    called = sum(macs.get(n, 0) for n in inside)
    if not called:
        return None
    weights = {end.weight for end in pairs.ends(layer)}
    now: dict[costs.Measure, float] = {
        "macs": called,
        "params": sum(w.numel() for w in weights),
        "bytes": sum(w.numel() * w.element_size() for w in weights),
    }
    full = pairs.full_rank(layer)
    inputs, outputs = pairs.widths(layer)
    share = 1 / full if pairs.is_pair(layer) else 1 / inputs + 1 / outputs
    return Candidate(name, layer, full, now, {m: cost * share for m, cost in now.items()})


def _too_small(layer: Any) -> str:
    inputs, outputs = pairs.widths(layer)
    return f"too small: no pair costs less than {inputs} x {outputs}"


def _that_run(
    module: nn.Module, example: Sequence[Tensor], found: Sequence[Candidate]
) -> tuple[list[Candidate], list[Refusal]]:
    """Proof by trial: with exact pairs in place the module runs and computes what it did.

    Code that reads `self.layer.weight`, or asks a layer's type or width, fails this.
    """
    import torch

    with torch.no_grad():
        wanted = call(module.eval(), example)
    fit, failed = sifted(found, lambda part: _trial_failure(module, example, part, wanted))
    return fit, [Refusal(one.name, why, _READ_FIX) for one, why in failed]


def _trial_failure(
    module: nn.Module,
    example: Sequence[Tensor],
    part: Sequence[Candidate],
    wanted: Sequence[Tensor],
) -> str:
    import torch

    trial = copy.deepcopy(module)
    for one in part:
        if not pairs.is_pair(one.layer):
            pairs.put(trial, one.name, _exact(one.layer))
    try:
        with torch.no_grad():
            got = call(trial.eval(), example)
    except FAILURES as error:
        text = str(error).strip().splitlines()
        return f"with a pair in its place the module fails: {text[-1] if text else error!r}"
    same = [o.shape for o in got] == [o.shape for o in wanted]
    if same and all(close(a, b) for a, b in zip(got, wanted, strict=True)):
        return ""
    return "with an equal pair in its place the module computes something else"


def _exact(layer: Any) -> nn.Sequential:
    """A pair that computes what `layer` does: its matrix and an identity."""
    import torch

    whole = pairs.matrix(layer)
    outputs, inputs = whole.shape
    if outputs <= inputs:
        return pairs.filled(layer, whole, torch.eye(outputs))
    return pairs.filled(layer, torch.eye(inputs), whole)
