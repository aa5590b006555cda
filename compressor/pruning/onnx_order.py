"""In which order channels go, and what remains can make up for: least squares on Gram matrices.

Removing the inputs P of a layer costs, once its other weights are re-solved,
tr(W_P · (H⁻¹_PP)⁻¹ · W_Pᵀ) of output error, H being the Gram matrix of its input: the optimal brain
surgeon (Hassibi and Stork, NIPS 1992) over whole channels, as in Kurtić et al., "ZipLM" (NeurIPS
2023). Channels that several layers read count with the sum of their relative errors. Neither labels
nor gradients are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.pruning.onnx_linear import Floats

_STEPS = 64  # channels go in at most so many portions
_DAMPING = 1e-4  # of the mean diagonal


@dataclass
class Problem:
    """One layer that reads a group's channels.

    Attributes:
        weight: [blocks, rows, columns], a bias as its last column.
        gram: of the rows of its input, [blocks, columns, columns].
        columns: those of each of the group's channels; none where the layer does not read it.
        power: of its output, around its mean.
    """

    weight: Floats
    gram: Floats
    columns: Sequence[NDArray[np.int64]]
    power: float


def output_power(weight: Floats, gram: Floats, biased: bool) -> float:
    """Power of weight · row over the rows of `gram`; around the mean where a one ends each row."""
    total = float(np.einsum("brk,bkl,brl->", weight, gram, weight, optimize=True))
    if biased:
        sums = np.einsum("brk,bk->br", weight, gram[:, :, -1])
        total -= float((sums**2).sum(axis=1) @ (1 / np.maximum(gram[:, -1, -1], 1e-30)))
    return max(total, 1e-30)


def damped(gram: Floats) -> Floats:
    """With a little on the diagonal, so that it has an inverse."""
    at = np.arange(gram.shape[-1])
    found = gram.copy()
    mean = np.maximum(gram[:, at, at].mean(axis=1), 1e-30)
    found[:, at, at] += _DAMPING * mean[:, None]
    return found


def resolved(weight: Floats, gram: Floats, left: NDArray[np.bool_]) -> Floats:
    """`weight` with its columns not in `left` zero and the others re-solved to make up for them."""
    made = np.zeros_like(weight)
    solid = damped(gram)
    for block in range(len(weight)):
        whole = weight[block] @ solid[block][:, left]
        made[block][:, left] = np.linalg.solve(solid[block][np.ix_(left, left)], whole.T).T
    return made


def removal_order(
    problems: Sequence[Problem], count: int, most: int
) -> tuple[list[int], list[float]]:
    """The first `most` of `count` channels to go, and the summed loss after each of them.

    The loss is output error over output power, summed over the layers.
    """
    states = [_State(p) if p.gram.size else _Plain(p) for p in problems]
    alive = np.ones(count, bool)
    order: list[int] = []
    losses = [0.0]
    portion = max(1, -(-count // _STEPS))
    while len(order) < most:
        costs = np.zeros(count)
        for state in states:
            costs += state.costs(alive)
        ranked = [int(i) for i in np.argsort(costs, kind="stable") if alive[i]]
        chosen = ranked[: min(portion, most - len(order))]
        before = losses[-1]
        total = sum(state.remove(chosen) for state in states)
        share = np.cumsum([max(costs[i], 0.0) for i in chosen])
        scale = total / share[-1] if share[-1] > 0 else 0.0
        losses += [before + float(s) * scale for s in share]
        order += chosen
        alive[chosen] = False
    return order, losses


class _State:
    """A problem as its channels go."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.weight = problem.weight.copy()
        self.inverse = np.linalg.inv(damped(problem.gram))
        sizes = sorted({len(c) for c in problem.columns if len(c)})
        self.buckets = [
            np.asarray([i for i, c in enumerate(problem.columns) if len(c) == size])
            for size in sizes
        ]

    def costs(self, alive: NDArray[np.bool_]) -> Floats:
        """Relative loss of removing each channel next."""
        found = np.zeros(len(alive))
        for bucket in self.buckets:
            here = bucket[alive[bucket]]
            if not len(here):
                continue
            at = np.stack([self.problem.columns[i] for i in here])
            for weight, inverse in zip(self.weight, self.inverse, strict=True):
                own = inverse[at[:, :, None], at[:, None, :]]
                part = weight[:, at].transpose(1, 2, 0)  # [channels, columns each, rows]
                found[here] += (part * np.linalg.solve(own, part)).sum(axis=(1, 2))
        return found / self.problem.power

    def remove(self, chosen: Sequence[int]) -> float:
        """Take channels out, let the others make up for them; the relative loss."""
        at = np.concatenate([self.problem.columns[i] for i in chosen])
        if not len(at):
            return 0.0
        lost = 0.0
        for block in range(len(self.weight)):
            weight, inverse = self.weight[block], self.inverse[block]
            own, rows = inverse[np.ix_(at, at)], inverse[at]
            pull: Any = np.linalg.solve(own, np.concatenate([rows, weight[:, at].T], axis=1))
            lost += float((weight[:, at] * pull[:, inverse.shape[0] :].T).sum())
            weight -= weight[:, at] @ pull[:, : inverse.shape[0]]
            inverse -= rows.T @ pull[:, : inverse.shape[0]]
            weight[:, at] = 0.0
            inverse[at], inverse[:, at] = 0.0, 0.0
            inverse[at, at] = 1.0
        return max(0.0, lost) / self.problem.power


class _Plain:
    """A problem without a Gram matrix: channels count by their weights, nothing makes up."""

    def __init__(self, problem: Problem) -> None:
        norms = (problem.weight**2).sum(axis=(0, 1))
        sums = [norms[columns].sum() for columns in problem.columns]
        self.shares: Floats = np.asarray(sums) / problem.power

    def costs(self, alive: NDArray[np.bool_]) -> Floats:  # noqa: ARG002
        """Relative loss of removing each channel."""
        return self.shares

    def remove(self, chosen: Sequence[int]) -> float:
        """Take channels out; the relative loss."""
        return float(self.shares[list(chosen)].sum())
