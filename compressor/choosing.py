"""Which metric judges a run: the recipe's, or what the data allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from compressor.metrics import Metric, evaluator_metric, load_metric
from compressor.modules import import_reference
from compressor.usercode import takes
from exporters.base import Samples
from runtimes.errors import UsageError


def load_evaluator(reference: Any, base_dir: Path) -> Callable[..., Any] | None:
    """The user's own loop, called with `run(feeds) -> outputs`; None where none is named."""
    if reference is None:
        return None
    if callable(reference):
        return cast("Callable[..., Any]", reference)
    found = import_reference(str(reference), base_dir)
    takes(found, 1, f"evaluator {reference}", "function(run)")
    return found


def choose_metric(
    named: Any,
    samples: Samples | None,
    base_dir: Path,
    *,
    agreement_only: bool,
    evaluator: Callable[..., Any] | None,
) -> Metric | None:
    """The metric of a run, or None where there is nothing to score on.

    Args:
        named: `metric:` of the recipe.
        samples: evaluation data, or the held-out part of the calibration data.
        base_dir: what modules are relative to.
        agreement_only: the samples tell only how far the outputs moved.
        evaluator: the user's loop, which brings its own metric.

    Raises:
        UsageError: labels and no metric, or a metric that needs labels and none.
    """
    if evaluator is not None:
        return evaluator_metric(evaluator)
    if samples is None:
        return None
    if agreement_only:
        return load_metric("agreement", base_dir)
    if named is not None:
        return load_metric(named, base_dir)
    if samples.labels is None:
        return load_metric("agreement", base_dir)
    raise UsageError(
        "the evaluation data has labels, and no metric is named",
        where="metric",
        fix="add metric: top1 (or f1, mae, …, module:function), or --metric",
    )
