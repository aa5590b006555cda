"""Metrics over text: perplexity, character and word error rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compressor.data.bind import Array
from compressor.metrics import Counts, Metric, Reducer, Rows
from compressor.metrics.basic import pick_output
from runtimes.base import Outputs
from runtimes.errors import MissingTool, UsageError

Decode = Callable[[Outputs], Sequence[str]]


def perplexity(output: str | None = None, ignore: int = -100, shift: bool = False) -> Metric:
    """Exp of the mean negative log-likelihood of the label tokens.

    Args:
        output: name of the logits, (n, tokens, vocabulary).
        ignore: labels that do not count.
        shift: the logits at t predict the label at t + 1 (labels are the input tokens).
    """

    def observe(outputs: Outputs, labels: Sequence[Any]) -> Rows:
        logits = pick_output(outputs, output, (3,), "perplexity")
        wanted = _tokens(labels, logits, ignore)
        if shift:
            logits, wanted = logits[:, :-1], wanted[:, 1:]
        keep = wanted != ignore
        loss = np.where(keep, _loss(logits, np.where(keep, wanted, 0)), 0.0)
        return np.stack([loss.sum(axis=1), keep.sum(axis=1)], axis=1)

    def reducer(rows: Rows) -> Reducer:
        ratio = ratio_of_sums(rows)
        return lambda counts: float(np.exp(ratio(counts)))

    def decide(outputs: Outputs) -> Array:
        return np.asarray(pick_output(outputs, output, (3,), "perplexity").argmax(axis=2))

    return Metric(
        "perplexity",
        "rows",
        higher_is_better=False,
        observe=observe,
        reducer=reducer,
        decide=decide,
    )


def _tokens(labels: Sequence[Any], logits: Array, ignore: int) -> Array:
    wanted = np.asarray(labels)
    if wanted.dtype.kind not in "iu" or wanted.shape != logits.shape[:2]:
        raise UsageError(
            "labels do not fit the logits",
            where="metric perplexity",
            expected=f"integers of shape {list(logits.shape[:2])}",
            got=f"{wanted.dtype}{list(wanted.shape)}",
        )
    wanted = wanted.astype(np.int64)
    wrong = wanted[(wanted != ignore) & ((wanted < 0) | (wanted >= logits.shape[2]))]
    if wrong.size:
        raise UsageError(
            f"token {wrong[0]} is outside the vocabulary",
            where="metric perplexity",
            expected=f"0–{logits.shape[2] - 1}, or {ignore} to ignore",
        )
    return wanted


def _loss(logits: Array, wanted: Array) -> Array:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=2, keepdims=True)
    total = np.log(np.exp(wide).sum(axis=2))
    own = np.take_along_axis(wide, wanted[:, :, None], 2)[:, :, 0]
    return np.asarray(total - own)


def ratio_of_sums(rows: Rows) -> Reducer:
    """Sum of the first column over the sum of the second."""
    table = np.asarray(rows)

    def value(counts: Counts) -> float:
        over, under = counts @ table
        return float(over / under) if under else float("nan")

    return value


def cer(
    decode: str | Decode = "ctc_greedy",
    alphabet: Sequence[str] = (),
    blank: int = 0,
    output: str | None = None,
    lengths: str | None = None,
) -> Metric:
    """Character error rate; see `wer` for the options."""
    return _error_rate("cer", decode, alphabet, blank, output, lengths)


def wer(
    decode: str | Decode = "ctc_greedy",
    alphabet: Sequence[str] = (),
    blank: int = 0,
    output: str | None = None,
    lengths: str | None = None,
) -> Metric:
    """Word error rate (jiwer) of the text decoded from the outputs against label strings.

    Args:
        decode: `ctc_greedy`, or `module:function` of (outputs) → one string a sample.
        alphabet: what each class stands for, the blank included; a string or a list.
        blank: the class that stands for nothing.
        output: name of the scores, (n, time, classes).
        lengths: name of the output that holds the number of valid time steps.
    """
    return _error_rate("wer", decode, alphabet, blank, output, lengths)


def _error_rate(
    name: str,
    decode: str | Decode,
    alphabet: Sequence[str],
    blank: int,
    output: str | None,
    lengths: str | None,
) -> Metric:
    count = _word_errors if name == "wer" else _character_errors
    if isinstance(decode, str) and decode != "ctc_greedy":
        raise UsageError(
            f"unknown decode {decode!r}",
            where=f"metric {name}",
            expected="ctc_greedy, module:function",
        )
    if isinstance(decode, str) and (not alphabet or not 0 <= blank < len(alphabet)):
        raise UsageError(
            "ctc_greedy needs an alphabet with the blank in it",
            where=f"metric {name}",
            expected="what each class stands for, such as '_ abcdefghijklmnopqrstuvwxyz'",
            got=f"alphabet of {len(alphabet)}, blank {blank}",
        )
    _jiwer()

    def texts(outputs: Outputs) -> Sequence[str]:
        if callable(decode):
            return decode(outputs)
        return ctc_greedy(outputs, alphabet, blank, output, lengths, name)

    def observe(outputs: Outputs, labels: Sequence[Any]) -> Rows:
        told = list(texts(outputs))
        wanted = [_text(label, name) for label in labels]
        if len(told) != len(wanted):
            raise UsageError(
                "not one text a sample",
                where=f"metric {name}",
                expected=str(len(wanted)),
                got=str(len(told)),
            )
        return np.array([count(w, t) for w, t in zip(wanted, told, strict=True)], dtype=np.float64)

    return Metric(
        name, "rows", higher_is_better=False, fraction=True, observe=observe, reducer=ratio_of_sums
    )


def _text(label: Any, name: str) -> str:
    if not isinstance(label, str):
        raise UsageError(
            "label is no text", where=f"metric {name}", expected="a string", got=repr(label)[:60]
        )
    return str(label)


def ctc_greedy(
    outputs: Outputs,
    alphabet: Sequence[str],
    blank: int,
    output: str | None,
    lengths: str | None,
    name: str = "wer",
) -> list[str]:
    """The best class at every time step, repeats merged, blanks dropped."""
    scores = pick_output(outputs, output, (3,), name)
    if scores.shape[2] != len(alphabet):
        raise UsageError(
            "alphabet does not fit the output",
            where=f"metric {name}",
            expected=f"{scores.shape[2]} entries (the last dimension), blank included",
            got=str(len(alphabet)),
        )
    valid = [scores.shape[1]] * len(scores)
    if lengths is not None:
        valid = [int(v) for v in np.ravel(pick_output(outputs, lengths, (1, 2), name))]
    texts = []
    for path, length in zip(np.argmax(scores, axis=2), valid, strict=True):
        kept = path[:length]
        fresh = np.r_[True, kept[1:] != kept[:-1]] if length else np.zeros(0, bool)
        texts.append("".join(alphabet[int(c)] for c in kept[fresh] if c != blank))
    return texts


def _word_errors(wanted: str, told: str) -> tuple[float, float]:
    if not wanted.strip():
        return float(len(told.split())), 0.0
    found = _jiwer().process_words(wanted, told)
    errors = found.substitutions + found.deletions + found.insertions
    return float(errors), float(found.hits + found.substitutions + found.deletions)


def _character_errors(wanted: str, told: str) -> tuple[float, float]:
    if not wanted:
        return float(len(told)), 0.0
    found = _jiwer().process_characters(wanted, told)
    errors = found.substitutions + found.deletions + found.insertions
    return float(errors), float(found.hits + found.substitutions + found.deletions)


def _jiwer() -> Any:
    try:
        import jiwer
    except ImportError as error:
        raise MissingTool(
            "cer and wer need jiwer", fix='pip install "edge-compressor[metrics]"'
        ) from error
    return jiwer
