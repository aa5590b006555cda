"""Metrics on the outputs of sequences, [n, steps, …], of models that take one step a call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compressor.data.bind import Array
from compressor.metrics import Metric, Rows
from runtimes.base import Outputs
from runtimes.errors import UsageError


def over_steps(metric: Metric, labels: Any) -> Metric:
    """`metric` for sequences.

    A user's function gets the outputs as they are. Of the others, one label a sequence scores the
    last step, labels with an axis of steps score every one, and a sequence's outcome is their mean.
    Without labels, every step's answer counts.
    """
    if metric.kind == "whole" or (metric.observe is None and metric.decide is None):
        return metric
    each = labels is None or _ranked(labels)
    made = replace(metric, decide=_decide(metric, each=each))
    if metric.observe is None:
        return made
    if not each:
        observe = metric.observe
        return replace(made, observe=lambda outputs, given: observe(_last(outputs), given))
    if metric.kind not in ("binary", "mean"):
        raise UsageError(
            f"{metric.name} is no mean over samples, and these labels are one a step",
            where=f"metric {metric.name}",
            expected="one label a sequence",
            fix="use module:function, which gets all outputs and labels",
        )
    return replace(made, kind="mean", observe=_mean_over_steps(metric))


def _ranked(labels: Any) -> bool:
    return np.ndim(labels[0]) > 0


def _last(outputs: Outputs) -> Outputs:
    return {name: array[:, -1] for name, array in outputs.items()}


def _flat(outputs: Outputs) -> Outputs:
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in outputs.items()}


def _decide(metric: Metric, *, each: bool) -> Any:
    decide = metric.decide
    if decide is None:
        return None

    def decided(outputs: Outputs) -> Array | None:
        if not each:
            return decide(_last(outputs))
        found = decide(_flat(outputs))
        n = len(next(iter(outputs.values())))
        return None if found is None else found.reshape(n, -1, *found.shape[1:])

    return decided


def _mean_over_steps(metric: Metric) -> Any:
    def observed(outputs: Outputs, labels: Sequence[Any]) -> Rows:
        n = len(labels)
        assert metric.observe is not None
        flat = [one for label in labels for one in np.asarray(label)]
        rows = np.asarray(metric.observe(_flat(outputs), flat))
        return np.asarray(rows.reshape(n, -1, rows.shape[1]).mean(axis=1), np.float64)

    return observed
