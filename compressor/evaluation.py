"""Runs a model over samples and keeps each outcome: the metric's, the answer, the outputs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.data.bind import Array, as_array
from compressor.metrics import Metric, Rows
from compressor.metrics.basic import guess_answers
from exporters.base import Samples
from runtimes.base import Feeds, Outputs
from runtimes.errors import UsageError

Run = Callable[[Feeds], Outputs]
KEPT_BYTES = 64 << 20  # of outputs kept to compare two models; several are held at a time
WHOLE_BYTES = 4 << 30  # of outputs a user's function is given at once


@dataclass
class Evaluation:
    """Outcomes of one model on one data set.

    Attributes:
        value: the metric, None where it is not a number or needs the original to compare with.
        n: samples.
        kind: what `rows` are, see `Metric.kind`; `none` = no outcome per sample.
        rows: (n, k) outcomes, or one (m, k) array a sample, or None.
        decisions: (n, …) answers, or None.
        kept: output → its values for the first samples, as many as fit in memory.
        labels: for a user's function, to be called again on resamples.
        doubts: what the user should know.
        higher_is_better: what an evaluator said, else None: the metric knows.
    """

    value: float | None
    n: int
    kind: str
    rows: Rows | None = None
    decisions: Array | None = None
    kept: dict[str, Array] = field(default_factory=dict)
    labels: Any = None
    doubts: list[str] = field(default_factory=list)
    higher_is_better: bool | None = None

    @property
    def per_sample(self) -> NDArray[np.float64] | None:
        """One number a sample where the metric is their mean, else None."""
        if self.kind not in ("binary", "mean") or self.rows is None:
            return None
        return np.asarray(self.rows)[:, 0]

    def to_arrays(self) -> dict[str, Array]:
        """Everything as plain arrays, for an `.npz` without pickle."""
        about = {"value": self.value, "n": self.n, "kind": self.kind, "doubts": self.doubts}
        about["higher_is_better"] = self.higher_is_better
        made: dict[str, Array] = {f"kept.{name}": array for name, array in self.kept.items()}
        if self.rows is not None:
            about["ragged"] = isinstance(self.rows, list)
            rows = self.rows if isinstance(self.rows, list) else [self.rows]
            made["rows"] = np.concatenate(rows)
            made["lengths"] = np.array([len(row) for row in rows])
        if self.decisions is not None:
            made["decisions"] = self.decisions
        if self.labels is not None:
            plain = isinstance(self.labels, np.ndarray)
            made["labels"] = self.labels if plain else np.array(json.dumps(_plain(self.labels)))
            about["plain_labels"] = plain
        return {**made, "about": np.array(json.dumps(about))}

    @staticmethod
    def from_arrays(arrays: Mapping[str, Array]) -> Evaluation:
        """The inverse of `to_arrays`."""
        about = json.loads(str(arrays["about"]))
        rows: Rows | None = None
        if "rows" in arrays:
            parts = np.split(arrays["rows"], np.cumsum(arrays["lengths"])[:-1])
            rows = list(parts) if about["ragged"] else parts[0]
        labels: Any = arrays.get("labels")
        if labels is not None and not about["plain_labels"]:
            labels = json.loads(str(labels))
        kept = {n.removeprefix("kept."): a for n, a in arrays.items() if n.startswith("kept.")}
        return Evaluation(
            about["value"],
            about["n"],
            about["kind"],
            rows,
            arrays.get("decisions"),
            kept,
            labels,
            about["doubts"],
            about["higher_is_better"],
        )


def _plain(labels: Any) -> Any:
    if isinstance(labels, np.ndarray | np.generic):
        return labels.tolist()
    if isinstance(labels, Mapping):
        return {str(k): _plain(v) for k, v in labels.items()}
    return [_plain(v) for v in labels] if isinstance(labels, list | tuple) else labels


class _Keeper:
    """The outputs of the first samples, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.full = limit, 0, False
        self.parts: list[Outputs] = []

    def add(self, outputs: Outputs) -> None:
        size = sum(array.nbytes for array in outputs.values())
        self.full = self.full or self.used + size > self.limit
        if not self.full:
            self.used += size
            self.parts.append({name: np.array(array) for name, array in outputs.items()})

    def joined(self) -> dict[str, Array]:
        """Output → all of it: stacked where shapes allow, else one flat array."""
        made = {}
        for name in self.parts[0] if self.parts else ():
            arrays = [part[name] for part in self.parts]
            fits = arrays[0].ndim > 0 and len({a.shape[1:] for a in arrays}) == 1
            made[name] = np.concatenate(arrays if fits else [a.ravel() for a in arrays])
        return made


def evaluate(
    run: Run,
    samples: Samples | None,
    metric: Metric,
    *,
    batch: int = 32,
    evaluator: Callable[..., Any] | None = None,
) -> Evaluation:
    """Outcomes of a model on `samples`.

    Args:
        run: one batch of feeds → outputs by name.
        samples: the data, with labels where the metric needs them; an evaluator brings its own.
        metric: how outputs are scored.
        batch: samples at once; a last batch that is smaller is filled up where the model's batch
            size is fixed, and the filling is dropped.
        evaluator: the user's own loop, called as `evaluator(run)`, instead of `metric`; returns
            `{"metric": float, "per_sample": array or None}`.

    Raises:
        UsageError: labels that are missing or do not fit the outputs.
    """
    if evaluator is not None:
        return _by_evaluator(run, evaluator)
    assert samples is not None
    if metric.needs_labels and samples.labels is None:
        raise UsageError(
            f"{metric.name} needs labels, and the data has none",
            where="data.evaluation",
            fix="add labels, or use metric: agreement",
        )
    keeper = _Keeper(WHOLE_BYTES if metric.kind == "whole" else KEPT_BYTES)
    rows: list[Rows] = []
    decisions: list[Array | None] = []
    for indices, outputs in _outputs(run, samples, batch):
        keeper.add(outputs)
        own = outputs if samples.ragged else _of_samples(outputs, len(indices), metric)
        if metric.observe is not None:
            rows.append(metric.observe(own, pick(samples.labels, indices)))
        if metric.decide is not None:
            decisions.append(metric.decide(own))
    found = Evaluation(
        None, len(samples), metric.kind, _stacked(rows), _joined(decisions), keeper.joined()
    )
    _say_what_is_kept(found, keeper)
    if metric.kind == "whole":
        return _by_function(found, metric, keeper, samples)
    if metric.reducer is not None and found.rows is not None:
        found.value = _number(metric.reducer(found.rows)(np.ones(found.n)), found)
    return found


def _outputs(run: Run, samples: Samples, batch: int) -> Iterable[tuple[list[int], Outputs]]:
    fixed = _fixed_batch(samples)
    for indices, feeds in samples.batches(fixed or batch):
        short = (fixed or 0) - len(indices)
        if short > 0:
            feeds = samples.feeds([*indices, *[indices[-1]] * short])
        outputs = run(feeds)
        if short > 0:
            outputs = {name: array[: len(indices)] for name, array in outputs.items()}
        yield indices, outputs


def _of_samples(outputs: Outputs, rows: int, metric: Metric) -> Outputs:
    """The outputs with one row a sample; a recurrent state, say, has its batch axis elsewhere."""
    found = {name: array for name, array in outputs.items() if array.shape[:1] == (rows,)}
    if not found and metric.observe is not None:
        raise UsageError(
            "no output has one row a sample",
            where=f"metric {metric.name}",
            expected=f"{rows} rows",
            got=", ".join(f"{name}{list(array.shape)}" for name, array in outputs.items()),
            fix="use an evaluator, which sees run(feeds) itself",
        )
    return found


def _fixed_batch(samples: Samples) -> int | None:
    if samples.ragged:
        return None
    first = [spec.shape[0] for spec in getattr(samples, "inputs", ()) if spec.shape]
    fixed = [size for size in first if isinstance(size, int)]
    return fixed[0] if fixed else None


def pick(labels: Any, indices: Sequence[int]) -> Any:
    """The labels of some samples."""
    if isinstance(labels, np.ndarray):
        return labels[np.asarray(indices)]
    return [labels[i] for i in indices]


def _stacked(rows: Sequence[Rows]) -> Rows | None:
    if not rows:
        return None
    if isinstance(rows[0], list):
        return [row for part in rows for row in part]
    return np.concatenate(rows)


def _joined(decisions: Sequence[Array | None]) -> Array | None:
    found = [part for part in decisions if part is not None]
    if not found or len(found) < len(decisions) or len({part.shape[1:] for part in found}) > 1:
        return None
    whole = np.concatenate(found)
    return whole.astype(np.int32) if whole.size and np.abs(whole).max() < 2**31 else whole


def _number(value: float, found: Evaluation) -> float | None:
    if math.isfinite(value):
        return float(value)
    found.doubts.append("the metric is not a finite number")
    return None


def _say_what_is_kept(found: Evaluation, keeper: _Keeper) -> None:
    bad = [name for name, array in found.kept.items() if not np.isfinite(array).all()]
    if bad:
        found.doubts.append(f"output {bad[0]!r} holds NaN or infinity")
    if keeper.full:
        kept = sum(len(next(iter(part.values()))) for part in keeper.parts)
        text = f"outputs were compared on the first {kept:,} of {found.n:,} samples"
        found.doubts.append(f"{text} ({KEPT_BYTES >> 20} MiB of them)")


def _by_function(
    found: Evaluation, metric: Metric, keeper: _Keeper, samples: Samples
) -> Evaluation:
    if keeper.full:
        raise UsageError(
            f"the outputs exceed {WHOLE_BYTES >> 30} GiB",
            where=f"metric {metric.name}",
            fix="use an evaluator, which is called with run(feeds) and keeps what it needs",
        )
    found.labels = samples.labels
    value, per_sample = call_metric(metric, found.kept, found.labels, found.n)
    found.value = _number(value, found)
    if per_sample is not None and math.isclose(
        float(per_sample.mean()), value, rel_tol=1e-5, abs_tol=1e-7
    ):
        found.kind, found.rows, found.labels = _kind_of(per_sample), per_sample[:, None], None
    return found


def _kind_of(per_sample: NDArray[np.float64]) -> str:
    return "binary" if np.isin(per_sample, (0.0, 1.0)).all() else "mean"


def call_metric(
    metric: Metric, outputs: Mapping[str, Array], labels: Any, n: int
) -> tuple[float, NDArray[np.float64] | None]:
    """(value, one number a sample or None) of the user's function."""
    where = f"metric {metric.name}"
    assert metric.function is not None
    returned = metric.function(dict(outputs), labels)
    value, rest = (
        returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    )
    return _checked(value, where), _checked_rows(rest, where, n)


def _checked(value: Any, where: str) -> float:
    found = as_array(value, where) if not isinstance(value, str) else np.empty(2)
    if found.size != 1 or found.dtype.kind not in "iufb":
        raise UsageError(
            "not a number",
            where=where,
            expected="float, or (float, one number a sample)",
            got=type(value).__name__,
        )
    return float(found.reshape(()))


def _checked_rows(values: Any, where: str, n: int | None) -> NDArray[np.float64] | None:
    if values is None:
        return None
    found = as_array(values, where)
    if found.ndim != 1 or found.dtype.kind not in "iufb" or len(found) != (n or len(found)):
        wanted = "one number a sample" + (f", {n} of them" if n else "")
        raise UsageError(
            "wrong outcomes per sample",
            where=where,
            expected=wanted,
            got=f"{found.dtype}{list(found.shape)}",
        )
    return found.astype(np.float64)


def _described(returned: Any) -> str:
    if isinstance(returned, Mapping):
        return "a mapping with " + (", ".join(map(str, returned)) or "nothing in it")
    return type(returned).__name__


def _by_evaluator(run: Run, evaluator: Callable[..., Any]) -> Evaluation:
    where = f"evaluator {getattr(evaluator, '__name__', 'function')}"
    keeper = _Keeper(KEPT_BYTES)

    def watched(feeds: Feeds) -> Outputs:
        outputs = run(feeds)
        keeper.add(outputs)
        return outputs

    returned = evaluator(watched)
    if not isinstance(returned, Mapping) or "metric" not in returned:
        raise UsageError(
            "the evaluator returned something else",
            where=where,
            expected='{"metric": float, "per_sample": array or None}',
            got=_described(returned),
            fix="return that mapping" if not isinstance(returned, Mapping) else "add its 'metric'",
        )
    if not keeper.used:
        raise UsageError("the evaluator never called run(feeds)", where=where)
    value = _checked(returned["metric"], where)
    rows = _checked_rows(returned.get("per_sample"), where, None)
    found = Evaluation(None, 0 if rows is None else len(rows), "none", kept=keeper.joined())
    found.value = _number(value, found)
    found.decisions = None if keeper.full else guess_answers(found.kept)
    if "higher_is_better" in returned:
        found.higher_is_better = bool(returned["higher_is_better"])
    if rows is not None:
        averaged = math.isclose(float(rows.mean()), value, rel_tol=1e-5, abs_tol=1e-7)
        found.rows, found.kind = rows[:, None], _kind_of(rows) if averaged else "none"
    return found
