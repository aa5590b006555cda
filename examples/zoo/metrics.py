"""Metrics of the zoo that need a line of code: what `metric: module:function` is for."""

from __future__ import annotations

import numpy as np

Scored = tuple[float, list[float]]


def next_token(outputs: dict[str, np.ndarray], labels: np.ndarray) -> Scored:
    """Share of positions whose most likely next token is the right one: mean, and per sequence."""
    right = (outputs["logits"].argmax(-1) == np.asarray(labels)).mean(-1)
    return float(right.mean()), right.tolist()


next_token.fraction = True  # type: ignore[attr-defined]


def captcha_signs(outputs: dict[str, np.ndarray], labels: np.ndarray) -> Scored:
    """Share of a captcha's four signs that are read right, in their places."""
    right = [
        sum(a == b for a, b in zip(text, str(wanted), strict=False)) / len(str(wanted))
        for text, wanted in zip(captcha_text(outputs), labels, strict=True)
    ]
    return float(np.mean(right)), right


captcha_signs.fraction = True  # type: ignore[attr-defined]


CAPTCHA = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_"


def captcha_text(outputs: dict[str, np.ndarray]) -> list[str]:
    """Greedy CTC of scores [n, time, 37]; class 0 is never read, the last one is the blank."""
    scores = next(iter(outputs.values()))
    best = scores[:, :-1, 1:].argmax(-1)  # [n, time], classes from 1 on
    texts = []
    for row in best:
        before, text = 36, ""
        for label in row:
            if label not in (35, before):
                text += CAPTCHA[label + 1]
            before = label
        texts.append(text)
    return texts
