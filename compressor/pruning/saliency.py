"""How much each channel matters: one value a channel of a group's root layer.

`l2`: squared weights of everything that goes with the channel, the group's mean set to 1.
`lamp`: the same as a share of what is left once smaller channels are gone, which compares across
groups: Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning" (ICLR 2021).
`hessian`: second-order expansion in the weights themselves, their curvature the diagonal of the
Fisher information: LeCun et al., "Optimal Brain Damage" (1990).
`taylor`: second-order Taylor expansion of the change in the model's own output distribution,
with the Fisher information for the curvature, taken at the channel's gate: Theis et al.,
arXiv 1801.05787 (2018); Liu et al., "Group Fisher Pruning" (ICML 2021). Both need samples but no
labels, and their values (nats, or squared output deviations) compare across groups.
`random`: the control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.pruning import recurrent
from compressor.pruning.graph import ChannelGroup, Member
from compressor.pruning.removal import cuts
from compressor.sources.torch_io import OutputKind, call, first_input, plain_attention

if TYPE_CHECKING:
    from torch import Tensor, nn

Saliency = dict[str, np.ndarray]  # group name → [width]


def random(groups: Sequence[ChannelGroup], seed: int) -> Saliency:
    """Uniform numbers: what any criterion must beat."""
    rng = np.random.default_rng(seed)
    return {g.name: rng.random(g.width) for g in groups}


def l2(module: nn.Module, groups: Sequence[ChannelGroup]) -> Saliency:
    """Mean over the coupled layers of the squared norm of a channel's weights, per group mean 1."""
    sums = _by_channel(module, groups, _squares)
    return {name: total / max(float(total.mean()), 1e-30) for name, total in sums.items()}


def lamp(module: nn.Module, groups: Sequence[ChannelGroup]) -> Saliency:
    """`l2` over the sum of it and all larger ones of the group: the largest channel has 1."""
    return shares(l2(module, groups))


def shares(saliencies: Saliency) -> Saliency:
    """Each value over the sum of it and all larger ones of its group."""
    found = {}
    for name, norms in saliencies.items():
        order = np.argsort(norms, kind="stable")
        left = np.cumsum(norms[order][::-1])[::-1]
        found[name] = np.empty_like(norms)
        found[name][order] = norms[order] / np.maximum(left, 1e-30)
    return found


def hessian(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[Sequence[Tensor]],
    kinds: Sequence[OutputKind],
    seed: int,
) -> Saliency:
    """Expected loss of zeroing each of a channel's weights, summed over them.

    Scores of outputs drawn independently have mean zero, so that the square of a batch's gradient
    is the sum of its samples' squares in expectation.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = {
        (layer, name): w for layer in module.modules() for name, w in _weights(layer).items()
    }
    total = {key: torch.zeros_like(w, dtype=torch.float64) for key, w in weights.items()}
    samples = 0
    module.eval()
    for batch in batches:
        with _unfrozen(module):
            score = _drawn_score(call(module, batch), kinds, generator)
            grads = torch.autograd.grad(score, list(weights.values()), allow_unused=True)
        for key, grad in zip(weights, grads, strict=True):
            if grad is not None:
                total[key] += grad.double().square()
        samples += int(batch[0].shape[0])
    count = 2 * max(1, samples)
    return _by_channel(
        module, groups, lambda layer, name: total[layer, name] * _squares(layer, name) / count
    )


def _squares(layer: Any, name: str) -> Tensor:
    squares: Tensor = getattr(layer, name).detach().double().square()
    return squares


@contextmanager
def _unfrozen(module: nn.Module) -> Iterator[None]:
    """Inside, every parameter has gradients, and attention is made of its parts."""
    import torch

    frozen = [p for p in module.parameters() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        with torch.enable_grad(), plain_attention():
            yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _by_channel(
    module: nn.Module, groups: Sequence[ChannelGroup], values: Callable[[Any, str], Tensor]
) -> Saliency:
    """Per group and channel, `values` of the weights that go with it, summed over all layers.

    `values` of a layer and the name of its weight has the weight's shape.
    """
    layers = dict(module.named_modules())
    found = {}
    for group in groups:
        total = np.zeros(group.width)
        for member in group.members:
            layer = layers.get(member.layer)
            own = {name: values(layer, name) for name in _weights(layer)}
            if own:
                sums = _channel_sums(layer, member.side, own)
                np.add.at(total, list(member.root), sums[list(member.own)])
        found[group.name] = total
    return found


def _weights(layer: Any) -> dict[str, Tensor]:
    """The weights of a layer whose channels are told apart, by name."""
    from torch import nn

    if isinstance(layer, nn.RNNBase):
        return {name: p for name, p in layer.named_parameters(recurse=False) if p.dim() == 2}
    known = isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))
    return {"weight": layer.weight} if known else {}


def _channel_sums(layer: Any, side: str, found: Mapping[str, Tensor]) -> np.ndarray:
    if "weight" not in found:
        return _recurrent_sums(layer, side, found)
    values = found["weight"]
    conv = values.dim() > 2
    axis = (0 if side == "out" else 1) if not (conv and layer.transposed) else int(side == "out")
    sums: np.ndarray = values.transpose(0, axis).flatten(1).sum(1).numpy()
    grouped = conv and layer.groups > 1 and axis == 1
    return np.tile(sums, layer.groups) if grouped else sums


def _recurrent_sums(layer: Any, side: str, found: Mapping[str, Tensor]) -> np.ndarray:
    """Of inputs their columns; of a hidden unit all gates' rows and all columns that read it.

    Directions share their units: each of a unit's channels has its part of the unit's sum.
    """
    import torch

    parts = recurrent.directions(layer) if side == "out" else 1
    size = layer.hidden_size if side == "out" else layer.input_size
    sums, rows = np.zeros(size), dict[str, list[int]]()
    for name, axis, index in cuts(layer, side, range(size)):
        if name not in found:
            continue  # a bias
        taken = found[name].index_select(axis, torch.tensor(index))
        sums += taken.sum(1 - axis).reshape(-1, size).sum(0).numpy()
        if axis == 0:
            rows[name] = index
        elif name in rows:  # where a unit's rows and columns meet, they were added twice
            both = taken.index_select(0, torch.tensor(rows[name])).reshape(
                -1, size, len(index) // size, size
            )
            sums -= both.diagonal(dim1=1, dim2=3).sum((0, 1)).numpy()
    return np.tile(sums / parts, parts)


def taylor(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[Sequence[Tensor]],
    kinds: Sequence[OutputKind],
    seed: int,
) -> Saliency:
    """Expected squared gradient at each channel's gate, outputs drawn from the model itself.

    The gates of a layer that is never called (nn.MultiheadAttention hands on its weights) are read
    off the weights, a batch at a time: scores are independent, so that their sum's square will do.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    total = {g.name: torch.zeros(g.width, dtype=torch.float64) for g in groups}
    samples, layers = 0, dict(module.named_modules())
    module.eval()
    for batch in batches:
        with _unfrozen(module), _watched(module, groups) as seen:
            score = _drawn_score(call(module, batch), kinds, generator)
            places = [(key, x) for key, found in seen.items() for x in found]
            weights = [(key, layers[key].weight) for key, found in seen.items() if not found]
            wanted = [x for _, x in places + weights]
            grads = torch.autograd.grad(score, wanted, allow_unused=True)
        for some, given in ((places, grads[: len(places)]), (weights, grads[len(places) :])):
            for name, gates in _gate_gradients(module, groups, some, given).items():
                total[name] += gates.double().square().sum(0)
        samples += int(batch[0].shape[0])
    return {name: (value / max(1, samples)).numpy() for name, value in total.items()}


def _drawn_score(outputs: Sequence[Tensor], kinds: Sequence[OutputKind], generator: Any) -> Tensor:
    """Log-likelihood of outputs drawn from what the model says: categories, or unit normals."""
    import torch

    score = torch.zeros(())
    for out, kind in zip(outputs, kinds, strict=True):
        if kind == "classes":
            logs = out.float().log_softmax(1)
            drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)
            score = score + logs.gather(1, drawn).sum()
        elif kind == "values":
            noise = torch.randn(out.shape, generator=generator)
            deviation = out.detach().float().std().clamp_min(1e-6)
            score = score + (noise * out.float() / deviation).sum() / max(1, out[0].numel()) ** 0.5
    return score


@contextmanager
def _watched(
    module: nn.Module, groups: Sequence[ChannelGroup]
) -> Iterator[dict[str, list[Tensor]]]:
    """Inside, what enters every layer that consumes a group's channels is collected."""
    layers = dict(module.named_modules())
    consumers = {m.layer for g in groups for m in _consumers(g, layers)}
    seen: dict[str, list[Tensor]] = {name: [] for name in sorted(consumers)}

    def hook(name: str) -> Any:
        return lambda _layer, args, kwargs: seen[name].append(first_input(args, kwargs))

    handles = [
        layers[name].register_forward_pre_hook(hook(name), with_kwargs=True) for name in seen
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _consumers(group: ChannelGroup, layers: dict[str, Any]) -> list[Member]:
    from torch import nn

    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
    return [m for m in group.members if m.side == "in" and isinstance(layers[m.layer], kinds)]


def _gate_gradients(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    places: Sequence[tuple[str, Tensor]],
    grads: Sequence[Tensor | None],
) -> dict[str, Tensor]:
    """Group name → gradient at each sample's gates, [samples, width]."""
    import torch

    layers = dict(module.named_modules())
    found: dict[str, Tensor] = {}
    for (name, x), grad in zip(places, grads, strict=True):
        if grad is None:
            continue
        layer, product = layers[name], (x * grad).detach()
        never_called = x is getattr(layer, "weight", None)
        product = product.sum(0, keepdim=True) if never_called else _by_sample(layer, product)
        for group in groups:
            for m in _consumers(group, layers):
                if m.layer == name:
                    gates = found.setdefault(group.name, torch.zeros(len(product), group.width))
                    often = len(set(m.own)) / len(m.own)  # where one channel is several
                    gates.index_add_(1, torch.tensor(m.root), product[:, list(m.own)] * often**0.5)
    return found


def _by_sample(layer: Any, product: Tensor) -> Tensor:
    """[samples, channels] of an activation: positions are summed."""
    from torch import nn

    if isinstance(layer, nn.modules.conv._ConvNd):
        return product.flatten(2).sum(2)
    if isinstance(layer, nn.RNNBase) and not layer.batch_first and product.dim() == 3:
        product = product.transpose(0, 1)
    return product.flatten(1, -2).sum(1) if product.dim() > 2 else product
