"""What of a target's candidates ships, and why: the first that passes, else the untouched twin."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compressor.result import Candidate, Failure, State, TargetResult
from runtimes.types import Artifact


@dataclass(frozen=True)
class Built:
    """A candidate with the artifact behind it (None: it could not be built)."""

    candidate: Candidate
    artifact: Artifact | None


@dataclass(frozen=True)
class Outcome:
    """A target's result, the artifact that ships, and the best one that failed."""

    result: TargetResult
    shipped: Artifact | None
    failed: Built | None = None


def choose(
    blank: TargetResult,
    twins: list[Built],
    twin: Built | None,
    tried: list[Built],
    explicit: bool,
) -> Outcome:
    """What ships and why: the first rung that passes, else one nobody can decide, else the twin.

    Without a twin nothing ships then.
    """
    shown = [b.candidate for b in (*tried, *twins)]
    result = replace(blank, candidates=shown)
    for state, code in (("pass", 0), ("not_judged", 0), ("inconclusive", 3)):
        for built in tried:
            if built.artifact is not None and built.candidate.state == state:
                reason = _why_chosen(built.candidate, tried, state)
                done = replace(
                    result,
                    state=built.candidate.state,
                    exit_code=code,
                    shipped=built.candidate.name,
                    reason=reason,
                )
                return Outcome(done, built.artifact)
    best = _best_failing(tried)
    code = _failure_code(tried, explicit)
    reason = _why_twin(best, tried, "the untouched model ships" if twin else "nothing ships")
    name = twin.candidate.name if twin else ""
    done = replace(result, state="fail", exit_code=code, shipped=name, reason=reason)
    return Outcome(done, twin.artifact if twin else None, best)


def _best_failing(tried: list[Built]) -> Built | None:
    built = [b for b in tried if b.artifact is not None]
    return min(built, key=lambda b: fails(b.candidate), default=None)


def fails(candidate: Candidate) -> tuple[int, int]:
    """Gates failed, then gates left open: fewer of both is closer to passing."""
    states = [check.state for check in candidate.checks]
    return states.count("fail"), len(states) - states.count("fail") - states.count("pass")


def _failure_code(tried: list[Built], explicit: bool) -> int:
    """1 where candidates were judged and failed; an explicit list that broke has its own code."""
    if any(b.artifact is not None for b in tried):
        return 1
    codes = [b.candidate.failure.exit_code for b in tried if b.candidate.failure]
    return codes[0] if codes and explicit else (max(codes) if codes else 1)


def _why_chosen(candidate: Candidate, tried: list[Built], state: State | str) -> str:
    if state == "pass" and any(check.state == "not_judged" for check in candidate.checks):
        state = "not_judged"
    word = {
        "pass": "passes every gate",
        "not_judged": "fails no gate; not every gate could be judged",
        "inconclusive": "fails no gate, but not every gate could be decided",
    }[state]
    before = [b.candidate.name for b in tried if b.candidate.name != candidate.name]
    passed_over = before[: [b.candidate.name for b in tried].index(candidate.name)]
    more = f"; tried before it: {', '.join(passed_over)}" if passed_over else ""
    return f"{candidate.name} {word}{more}"


def _why_twin(best: Built | None, tried: list[Built], ships: str) -> str:
    if best is None:
        return f"no candidate could be built, {ships}: {_reasons(tried)}"
    names = ", ".join(b.candidate.name for b in tried if b.artifact is not None)
    failed = next((c for c in best.candidate.checks if c.state == "fail"), None)
    stopped = f", stopped by {failed.gate}" if failed else ""
    return (
        f"no candidate passes (built: {names}), {ships}; closest is {best.candidate.name}{stopped}"
    )


def _first(failure: Failure) -> str:
    """What failed, with the first place where the model is not taken."""
    first, *more = failure.message.splitlines()
    place = more[0].strip() if failure.kind == "Unsupported" and more else "fix:"
    return first if place.startswith("fix:") else f"{first}: {place}"


def _reasons(tried: list[Built]) -> str:
    """Why nothing could be built, each reason once with the rungs it stopped."""
    rungs: dict[str, list[str]] = {}
    for built in tried:
        if built.candidate.failure:
            text = _first(built.candidate.failure)
            rungs.setdefault(text, []).append(built.candidate.name)
    if len(rungs) < 2:
        return next(iter(rungs), "nothing to try")
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in rungs.items())
