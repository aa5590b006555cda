"""Metrics by name, or the user's own function; each keeps one row of outcomes a sample.

A metric sees the outputs batch by batch (`observe`), and its value is a function of the rows and of
how often each sample counts (`reducer`): once each for the score, as drawn for a bootstrap.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compressor.data.bind import Array
from compressor.statistics import RESAMPLES
from compressor.usercode import takes
from runtimes.base import Outputs
from runtimes.errors import UsageError

# binary: one right/wrong a sample; mean: one number a sample, averaged; rows: the value follows
# from rows but is no mean; whole: a function of all outputs; free: a comparison without labels.
Kind = Literal["binary", "mean", "rows", "whole", "free"]
Rows = NDArray[np.float64] | list[NDArray[np.float64]]
Counts = NDArray[np.float64]
WHOLE_RESAMPLES = 500  # a user's function may be slow
Observe = Callable[[Outputs, Sequence[Any]], Rows]
Reducer = Callable[[Counts], float]


@dataclass(frozen=True)
class Metric:
    """How the outputs of a model are scored.

    Attributes:
        name: as in reports.
        kind: what a sample's outcome is, and so which interval the difference of two models has.
        higher_is_better: False for errors.
        fraction: the value lies in 0–1 (error rates: about), so that points make sense.
        needs_labels: it cannot work without.
        observe: (outputs of a batch, its labels) → one row a sample, (n, k) or a list of (m, k).
        reducer: rows → (times each sample counts → value).
        decide: outputs of a batch → the answers two models can agree on, (n, …) integers, or None.
        function: the user's own, of kind `whole`.
        resamples: of a bootstrap; fewer where each is slow.
        options: as the recipe gives them; part of the score's key.
    """

    name: str
    kind: Kind
    higher_is_better: bool = True
    fraction: bool = False
    needs_labels: bool = True
    observe: Observe | None = None
    reducer: Callable[[Rows], Reducer] | None = None
    decide: Callable[[Outputs], Array | None] | None = None
    function: Callable[..., Any] | None = None
    resamples: int = RESAMPLES
    options: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What its value depends on, as JSON: name, options, and the user's source code."""
        made: dict[str, Any] = {"name": self.name, "options": dict(self.options)}
        if self.function is not None:
            made["code"] = source_digest(self.function)
        return made


def source_digest(function: Callable[..., Any]) -> str:
    """SHA-256 of the file a function is written in (of its name where there is no file)."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
        return hashlib.sha256(Path(path or "").read_bytes()).hexdigest()
    except (TypeError, OSError):
        return hashlib.sha256(repr(function).encode()).hexdigest()


def mean_of_rows(rows: Rows) -> Reducer:
    """The mean of the first column."""
    column = np.asarray(rows, dtype=np.float64)[:, 0]
    return lambda counts: float(counts @ column / counts.sum())


def metric_names() -> list[str]:
    """Names a recipe may use."""
    return sorted(_builders())


def load_metric(spec: str | Mapping[str, Any], base_dir: Path) -> Metric:
    """The metric of a recipe.

    Args:
        spec: a name, a `module:function` of (outputs by name, labels), or a mapping
            `{name: …, option: …}`; `output: name` says which output, `higher_is_better: false`
            turns a function's direction.
        base_dir: what modules are relative to.

    Raises:
        UsageError: unknown name, option or value, with the closest.
        MissingTool: an extra is needed and not installed.
    """
    options = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UsageError("metric without a name", where="metric", expected="{name: top1, …}")
    if ":" in name:
        return _user_metric(name, options, base_dir)
    builders = _builders()
    if name not in builders:
        close = difflib.get_close_matches(name.lower(), builders, 1)
        raise UsageError(
            f"unknown metric {name!r}",
            where="metric",
            expected="one of " + ", ".join(sorted(builders)) + ", or module:function",
            fix=f"did you mean {close[0]!r}?" if close else "",
        )
    build = builders[name]
    _check_options(name, options, list(inspect.signature(build).parameters))
    if isinstance(options.get("decode"), str) and ":" in options["decode"]:
        given = {**options, "decode": _import(options["decode"], base_dir)}
        return replace(build(**given), function=given["decode"], options=options)
    return replace(build(**options), options=options)


def _check_options(name: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in options:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            raise UsageError(
                f"unknown option {key!r}",
                where=f"metric {name}",
                expected="one of " + ", ".join(known),
                fix=f"did you mean {close[0]!r}?" if close else "",
            )


def _import(reference: str, base_dir: Path) -> Callable[..., Any]:
    from compressor.modules import import_reference

    return import_reference(reference, base_dir)


def _user_metric(reference: str, options: Mapping[str, Any], base_dir: Path) -> Metric:
    _check_options(reference, options, ["higher_is_better", "fraction"])
    function = _import(reference, base_dir)
    takes(function, 2, f"metric {reference}", "function(outputs, labels)")
    higher = options.get("higher_is_better", getattr(function, "higher_is_better", True))
    fraction = options.get("fraction", getattr(function, "fraction", False))
    for key, value in (("higher_is_better", higher), ("fraction", fraction)):
        if not isinstance(value, bool):
            raise UsageError(f"{key} is a yes or no", where=f"metric {reference}", got=repr(value))
    return user_metric(
        function, reference.rpartition(":")[2], higher_is_better=higher, fraction=fraction
    )


def user_metric(
    function: Callable[..., Any],
    name: str = "",
    *,
    higher_is_better: bool = True,
    fraction: bool = False,
) -> Metric:
    """A metric from a function of (outputs by name, labels) → float or (float, one a sample)."""
    from compressor.metrics.basic import guess_answers

    return Metric(
        name or getattr(function, "__name__", "metric"),
        "whole",
        higher_is_better,
        fraction,
        needs_labels=False,
        decide=guess_answers,
        function=function,
        resamples=WHOLE_RESAMPLES,
        options={"higher_is_better": higher_is_better},
    )


def evaluator_metric(evaluator: Callable[..., Any]) -> Metric:
    """What an evaluator's figure is called and which way it points (its own attributes say)."""
    name = getattr(evaluator, "__name__", "evaluator")
    higher = bool(getattr(evaluator, "higher_is_better", True))
    fraction = bool(getattr(evaluator, "fraction", False))
    return Metric(name, "whole", higher, fraction, needs_labels=False, function=evaluator)


def _builders() -> dict[str, Callable[..., Metric]]:
    from compressor.metrics import basic, detection, text

    return {
        "top1": basic.top1,
        "top5": basic.top5,
        "f1": basic.f1,
        "auc": basic.auc,
        "mae": basic.mae,
        "rmse": basic.rmse,
        "miou": basic.miou,
        "perplexity": text.perplexity,
        "cer": text.cer,
        "wer": text.wer,
        "map50": detection.map50,
        "map50_95": detection.map50_95,
        "agreement": basic.agreement,
        "sqnr": basic.sqnr,
    }
