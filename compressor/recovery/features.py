"""Features to distil: inner tensors that the original and the compressed module both compute.

A module's output is one where both shapes are equal, or where they differ in one axis by the
channels that the artifact's facts say were removed there; what was kept is then compared. A block
(a module made of others) takes the channels of the last of its layers. Hints between layers are due
to Romero et al., "FitNets", arXiv 1412.6550, 2015; no layer has to be put between here, since
pruning keeps channels as they are.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compressor.sources.torch_io import call
from runtimes.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

Wanted = int | str | tuple[str, ...]  # auto, none, how many, or names of modules
WEIGHT = 0.1  # of the features' distance beside the outputs'


@dataclass(frozen=True)
class Feature:
    """The output of one module, and where its channels are in the original's.

    Attributes:
        name: of the module.
        axis: that channels were removed from; None where none were.
        kept: indices of the original's channels on that axis.
    """

    name: str
    axis: int | None = None
    kept: tuple[int, ...] = ()

    def of_original(self, tensor: Tensor) -> Tensor:
        """The original's output of this module, without what was removed."""
        import torch

        if self.axis is None:
            return tensor
        return tensor.index_select(self.axis, torch.tensor(self.kept))


@contextmanager
def tapped(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the submodules `names` return inside, by name; the last call counts."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _layer, _given, output: found.__setitem__(name, output)

    with ExitStack() as stack:
        for name in names:
            handle = module.get_submodule(name).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        yield found


def choose_features(
    student: nn.Module,
    original: nn.Module,
    batch: Sequence[Tensor],
    removed: Mapping[str, Sequence[int]],
    wanted: Wanted,
) -> list[Feature]:
    """Features of the modules named, or a number of them spread evenly over the depth.

    Blocks come before single layers, whose outputs are often about to be normalized or added to.
    Raises `UsageError` where a named module has no comparable output, or a number was asked for
    and there is none.
    """
    if wanted in ("auto", "none", 0):
        return []
    narrow, depth = _outputs(student, batch)
    wide, _ = _outputs(original, batch)
    fitting = {n: f for n in narrow if (f := _match(n, narrow, wide, removed)) is not None}
    if isinstance(wanted, int):
        inner = {n: f for n, f in fitting.items() if 0 < narrow[n].depth < depth}
        if not inner:
            raise UsageError(
                "no inner tensor of the module corresponds to one of the original's",
                where="recover.features", got=str(wanted), fix="set features: none",
            )  # fmt: skip
        blocks = {n: f for n, f in inner.items() if narrow[n].block}
        if len({narrow[n].depth for n in blocks}) >= wanted:
            inner = blocks
        return _spread({n: (narrow[n].depth / depth, f) for n, f in inner.items()}, wanted)
    names = (wanted,) if isinstance(wanted, str) else wanted
    return [_named(n, fitting, narrow, wide) for n in names]


@dataclass(frozen=True)
class _Output:
    """What a module returned.

    Attributes:
        shape: of the tensor.
        depth: how many layers with weights had run by then.
        last: of these layers.
        block: the module is made of others.
    """

    shape: tuple[int, ...]
    depth: int
    last: str
    block: bool


def _outputs(module: nn.Module, batch: Sequence[Tensor]) -> tuple[dict[str, _Output], int]:
    """Modules that ran once and returned one float tensor, in order, and the number of layers."""
    import torch

    found: dict[str, _Output] = {}
    calls: dict[str, int] = {}
    layers: list[str] = [""]

    def note(name: str) -> Any:
        def hook(layer: Any, _given: Any, output: Any) -> None:
            if next(layer.parameters(recurse=False), None) is not None:
                layers.append(name)
            calls[name] = calls.get(name, 0) + 1
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.dim() > 1:
                block = next(layer.children(), None) is not None
                found[name] = _Output(tuple(output.shape), len(layers) - 1, layers[-1], block)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, layer in module.named_modules():
            if name:
                stack.callback(layer.register_forward_hook(note(name)).remove)
        call(module, batch)
    return {n: o for n, o in found.items() if calls[n] == 1}, len(layers) - 1


def _match(
    name: str,
    narrow: Mapping[str, _Output],
    wide: Mapping[str, _Output],
    removed: Mapping[str, Sequence[int]],
) -> Feature | None:
    small, large = narrow[name].shape, wide[name].shape if name in wide else ()
    if small == large:
        return Feature(name)
    differ = [i for i, (a, b) in enumerate(zip(small, large, strict=False)) if a != b]
    if len(small) != len(large) or len(differ) != 1:
        return None
    (axis,) = differ
    gone = set(removed.get(name, removed.get(narrow[name].last, ())))
    kept = tuple(i for i in range(large[axis]) if i not in gone)
    return Feature(name, axis, kept) if len(kept) == small[axis] else None


def _spread(fitting: Mapping[str, tuple[float, Feature]], count: int) -> list[Feature]:
    """The features nearest to even distances; of equally deep ones the last, which is outermost."""
    chosen: dict[str, Feature] = {}
    for k in range(1, count + 1):
        aim = k / (count + 1)
        name = min(reversed(list(fitting)), key=lambda n: abs(fitting[n][0] - aim))
        chosen[name] = fitting[name][1]
    return [f for n, (_, f) in fitting.items() if n in chosen]


def _named(
    name: str,
    fitting: Mapping[str, Feature],
    narrow: Mapping[str, _Output],
    wide: Mapping[str, _Output],
) -> Feature:
    if name in fitting:
        return fitting[name]
    if name in narrow and name in wide:
        raise UsageError(
            f"the output of {name} is {narrow[name].shape}, the original's {wide[name].shape}, and "
            "which channels are left there is not known",
            where="recover.features",
            expected="one of " + ", ".join(list(fitting)[:8]),
        )
    close = difflib.get_close_matches(name, list(fitting), n=1)
    raise UsageError(
        f"no module {name} that runs once and returns one tensor of floats",
        where="recover.features",
        expected="one of " + ", ".join(list(fitting)[:8]),
        fix=f"did you mean {close[0]!r}?" if close else "",
    )
