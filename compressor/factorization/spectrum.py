"""How much of a layer's outputs each direction carries, on data or by its weights alone.

For inputs x with second moment C the best W' of rank r, in the mean square of (W - W')x, comes
from the singular vectors U of W C^1/2: W' = U_r U_r^T W (Chen et al., "DRONE", NeurIPS 2021;
Wang et al., "SVD-LLM", ICLR 2025, who call it whitening). U are also the eigenvectors of W C W^T,
the second moment of the outputs, as Zhang et al. (TPAMI 2016) take them for convolutions, where C
would be huge: the smaller of the two moments is collected. Where the layer has a bias, moments are
about the mean and the bias takes up what the mean loses. Without data it is the SVD of W.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.factorization import pairs
from compressor.factorization.candidates import Candidate
from compressor.sources.torch_io import call, first_input

if TYPE_CHECKING:
    from torch import Tensor, nn

_ROWS = 4096  # of each call, at most: positions of one picture tell much the same


@dataclass
class Moments:
    """Sums over rows of a layer's inputs or outputs: of products [n, n] and of values [n]."""

    of_inputs: bool
    products: Tensor
    values: Tensor
    rows: int = 0

    def add(self, rows: Tensor) -> None:
        """Take in `rows` [m, n]."""
        rows = rows.double()
        self.products += rows.T @ rows
        self.values += rows.sum(0)
        self.rows += len(rows)

    def mean(self) -> Tensor:
        """Of the values, [n]."""
        return self.values / self.rows

    def spread(self, central: bool) -> Tensor:
        """The second moment [n, n], about the mean if `central`."""
        import torch

        found = self.products / self.rows
        return found - torch.outer(self.mean(), self.mean()) if central else found


@dataclass(frozen=True)
class Spectrum:
    """Directions of a layer's outputs, the strongest first.

    Attributes:
        basis: orthonormal columns [outputs, full rank], float64.
        energies: mean square of the outputs along each, [full rank]; what is dropped is lost.
        mean: of the outputs, [outputs]; None where the bias stays as it is.
    """

    basis: Tensor
    energies: np.ndarray
    mean: Tensor | None = None

    def lost(self, rank: int) -> float:
        """The share of the energy that a pair of `rank` loses, 0–1."""
        total = float(self.energies.sum())
        return float(self.energies[rank:].sum()) / total if total > 0 else 0.0


def of_weights(layer: Any) -> Spectrum:
    """The spectrum for inputs that are all alike: white."""
    import torch

    left, values, _ = torch.linalg.svd(pairs.matrix(layer), full_matrices=False)
    full = pairs.full_rank(layer)
    return Spectrum(left[:, :full], values[:full].square().numpy())


def of_data(layer: Any, seen: Moments) -> Spectrum:
    """The spectrum for inputs like those in `seen`."""
    import torch

    weights, bias = pairs.matrix(layer), pairs.ends(layer)[1].bias
    full = pairs.full_rank(layer)
    moment = _steadied(seen.spread(central=bias is not None), weights, seen)
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    mean = seen.mean()
    if seen.of_inputs:
        vectors, roots, _ = torch.linalg.svd(weights @ (vectors * values.sqrt()), False)
        values = roots.square()
        mean = weights @ mean + (0 if bias is None else bias.detach().double())
    return Spectrum(vectors[:, :full], values[:full].numpy(), None if bias is None else mean)


def _steadied(moment: Tensor, weights: Tensor, seen: Moments) -> Tensor:
    """Mixed with white inputs of the same energy, the more the fewer rows there are to a value.

    So directions that a few samples do not show are not taken for empty (shrinkage as by Ledoit
    and Wolf, 2004, with a plain weight).
    """
    import torch

    share = weights.shape[1] / (weights.shape[1] + seen.rows)
    white = torch.eye(len(moment), dtype=moment.dtype) if seen.of_inputs else weights @ weights.T
    scale = moment.trace() / white.trace().clamp_min(1e-300)
    return (1 - share) * moment + share * scale * white


def pair_of(layer: Any, spectrum: Spectrum, rank: int) -> nn.Sequential:
    """The pair of `rank` that keeps the strongest directions, its two sides balanced.

    Between the two, values differ by the fourth root of the energies, not the square root: they
    share one scale when quantized, and train better.
    """
    import torch

    basis = spectrum.basis[:, :rank]
    energies = torch.from_numpy(spectrum.energies[:rank])
    scale = (energies / energies.max().clamp_min(1e-300)).pow(0.25).clamp_min(1e-3)
    bias = pairs.ends(layer)[1].bias
    if bias is not None and spectrum.mean is not None:
        off = bias.detach().double() - spectrum.mean
        bias = spectrum.mean + basis @ (basis.T @ off)
    first = (basis.T @ pairs.matrix(layer)) / scale[:, None]
    return pairs.filled(layer, first, basis * scale, bias)


def collect(
    module: nn.Module,
    candidates: Sequence[Candidate],
    batches: Iterable[Sequence[Tensor]],
    seed: int,
) -> dict[str, Moments]:
    """Name → moments of every candidate that the batches reach."""
    import torch

    with torch.no_grad(), _watched(candidates, seed) as seen:
        for batch in batches:
            call(module.eval(), batch)
    return {name: moments for name, moments in seen.items() if moments.rows}


@contextmanager
def _watched(candidates: Sequence[Candidate], seed: int) -> Iterator[Mapping[str, Moments]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    seen = {one.name: _empty(one.layer) for one in candidates}

    def hook(moments: Moments) -> Any:
        def add(layer: Any, args: Any, kwargs: Any, output: Tensor) -> None:
            values = output
            if moments.of_inputs:
                values = first_input(args, kwargs)
            moments.add(_some(_rows(layer, values, moments.of_inputs), generator))

        return add

    handles = [
        one.layer.register_forward_hook(hook(seen[one.name]), with_kwargs=True)
        for one in candidates
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _empty(layer: Any) -> Moments:
    """Moments of the inputs where there are fewer of them and a row is easily had."""
    import torch

    inputs, outputs = pairs.widths(layer)
    first = pairs.ends(layer)[0]
    padding = getattr(first, "padding", ())
    pointwise = first.weight[0, 0].numel() == 1 and (padding == "same" or not any(padding))
    size = min(inputs, outputs) if pointwise else outputs
    zeros = torch.zeros((size, size), dtype=torch.float64)
    return Moments(pointwise and inputs < outputs, zeros, zeros[0].clone())


def _rows(layer: Any, values: Tensor, of_inputs: bool) -> Tensor:
    """[rows, channels] of what enters or leaves a layer."""
    first = pairs.ends(layer)[0]
    if not hasattr(first, "kernel_size"):
        return values.flatten(0, -2)
    spatial = len(first.kernel_size)
    if of_inputs:
        values = values[(..., *(slice(None, None, s) for s in first.stride))]
    return values.movedim(-spatial - 1, -1).flatten(0, -2)


def _some(rows: Tensor, generator: Any) -> Tensor:
    """At most `_ROWS` of them, drawn."""
    import torch

    if len(rows) <= _ROWS:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:_ROWS]]
