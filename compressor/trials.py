"""How a searching step learns what an attempt is worth: never from evaluation data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from compressor.judging import Judge
from compressor.metrics import load_metric
from compressor.result import Comparison
from compressor.stateful import Steps
from compressor.validate import unit
from exporters.base import Samples, Trial
from runtimes.errors import UsageError
from runtimes.types import Artifact


def selecting(judge: Judge, data: Mapping[str, Samples], base_dir: Path) -> Judge:
    """`judge` over the data that choices are made on.

    Without selection data, or labels where the metric needs them, attempts are held against the
    original's answers; then calibration data serves as well.
    """
    samples = data.get("selection", data.get("calibration"))
    if isinstance(samples, Steps):
        samples = samples.whole
    metric = judge.metric
    if samples is None:
        raise UsageError(
            "this step searches, and there is no data to choose by",
            where="data.selection",
            fix="add data.selection (never the evaluation data)",
        )
    given = "selection" in data
    if metric is None or not given or (metric.needs_labels and samples.labels is None):
        metric = load_metric("agreement", base_dir)
    return replace(judge, samples=samples, metric=metric, evaluator=None)


def trial(judge: Judge, made: Artifact, runtime: str, device: str) -> Trial:
    """`made` against the original model, both on `judge`'s samples."""
    found = judge.score(made, runtime, device, "trial")
    compared = judge.compare(found)
    if found is None or compared is None:
        return Trial(0.0, made.size_bytes)
    drop = compared.relative_drop
    if drop is None and compared.sqnr_db is not None:
        drop = 10 ** (-compared.sqnr_db / 10)
    upper = _upper(judge, compared)
    return Trial(float(found.value or 0.0), made.size_bytes, drop, upper, compared.sqnr_db)


def _upper(judge: Judge, compared: Comparison) -> float | None:
    """The bound of a relative loss, in its units."""
    if compared.interval is None or judge.metric is None or judge.base is None:
        return None
    whole = unit(judge.metric, judge.base)
    return None if whole is None else compared.interval[1] / whole
