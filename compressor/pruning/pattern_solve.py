"""What a layer's remaining weights must be once others are zero: least squares on a Gram matrix.

Zeros that cost little at first may cost much together, so they go in a few portions, the others
re-solved in between, as in the optimal brain surgeon (Hassibi and Stork, NIPS 1992) and SparseGPT
(Frantar and Alistarh, arXiv 2301.00774, 2023). Those sweep over columns with an inverse that all
rows share; here each row's own least-squares problem is solved to its end by conjugate gradients,
all rows at once, which needs neither an inverse nor a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from compressor.pruning.patterns import Mask, Pattern

_DAMPING = 0.01  # of the mean diagonal, as in `reconstruct`
_PORTIONS = 4
_STEPS, _LAST = 8, 40  # of conjugate gradients between portions, and after the last
_LARGE = 1 << 30  # products a step; such a layer gets fewer of both


def scores(weight: Any, gram: Any | None) -> Any:
    """The output error of zeroing each weight alone, nothing made up for; without data, w²."""
    if gram is None:
        return weight.astype(np.float64) ** 2
    return weight.astype(np.float64) ** 2 * np.einsum("gkk->gk", gram)[:, None, : weight.shape[2]]


def energy(weight: Any, gram: Any) -> float:
    """Power of `weight` [groups, outputs, columns] on rows of this Gram matrix, tr(W·H·Wᵀ)."""
    return float(((weight @ gram) * weight).sum())


def solve(weight: Any, gram: Any, pattern: Pattern, kernel: int, keep: float, fixed: int) -> Any:
    """`weight` in the pattern, the rest of it such that the layer's outputs move least.

    Args:
        weight: [groups, outputs, columns], the last `fixed` columns no inputs but the bias.
        gram: of the rows it is multiplied with, [groups, columns, columns].
        pattern: that the zeros must have; what is zero already stays so.
        kernel: positions, of which each input channel has that many columns.
        keep: the share of the weights that stays.
        fixed: 1 with a bias, else 0.
    """
    whole = np.array(gram, np.float64)
    diagonal = np.einsum("gkk->gk", whole)
    diagonal += np.maximum(_DAMPING * diagonal.mean(axis=1, keepdims=True), 1e-30)
    inner = weight.shape[2] - fixed
    stays = np.ones(weight.shape, bool)
    stays[:, :, :inner] = weight[:, :, :inner] != 0
    heavy = weight.size * weight.shape[2] > _LARGE
    portions = 2 if heavy or pattern.quads else _PORTIONS
    made = weight.astype(np.float64)
    for portion in range(1, portions + 1):
        cost = scores(made, whole)[:, :, :inner]
        left = 1 - (1 - keep) * portion / portions
        stays[:, :, :inner] &= pattern.best(cost, kernel, left)
        last = portion == portions
        made = _refit(weight, made * stays, stays, whole, (_LAST if last else _STEPS) >> heavy)
    return made


def _refit(weight: Any, start: Any, stays: Mask, gram: Any, steps: int) -> Any:
    """From `start`, towards the weights of least tr((W-V)·H·(W-V)ᵀ) among those that stay."""
    inverse = 1 / np.einsum("gkk->gk", gram)[:, None, :]
    made = start.copy()
    slope = ((weight - made) @ gram) * stays
    first = worth = (slope * slope * inverse).sum(axis=2, keepdims=True)
    way = slope * inverse
    for _ in range(steps):
        turned = (way @ gram) * stays
        curve = (way * turned).sum(axis=2, keepdims=True)
        length = np.divide(worth, curve, out=np.zeros_like(worth), where=curve > 0)
        made += length * way
        slope -= length * turned
        before, worth = worth, (slope * slope * inverse).sum(axis=2, keepdims=True)
        if (worth <= 1e-10 * first).all():
            break
        ratio = np.divide(worth, before, out=np.zeros_like(worth), where=before > 0)
        way = slope * inverse + ratio * way
    return made
