"""Plain dataclasses in, path-precise errors out: the only file that talks to pydantic."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from runtimes.errors import UsageError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a recipe, a flag or the data."""

    where: str
    what: str
    expected: str = ""
    got: str = ""
    fix: str = ""
    exit_code: int = 2

    @staticmethod
    def of(error: UsageError | Any) -> Problem:
        """A `CompressError` as a problem."""
        return Problem(
            error.where, error.what, error.expected, error.got, error.fix, error.exit_code
        )


class Problems(UsageError):  # noqa: N818 - what it holds, as the user reads it
    """Every problem found at once; the exit code is the worst one's in the design's order."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        blocks = [
            UsageError(p.what, where=p.where, expected=p.expected, got=p.got, fix=p.fix).text()
            for p in problems
        ]
        head = f"{len(problems)} problems\n" if len(problems) > 1 else ""
        super().__init__(head + "\n".join(blocks))
        codes = {p.exit_code for p in problems}
        self.exit_code = next((c for c in (2, 7, 6, 5, 4) if c in codes), 2)


def parse(kind: type[T], data: Any, where: str) -> T:
    """`data` as the dataclass `kind`; raises `Problems` naming each bad field.

    Unknown keys are errors, with the closest known key.
    """
    from pydantic import TypeAdapter, ValidationError

    problems = list(_unknown_keys(kind, data, where))
    try:
        value = TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        problems += [_problem(dict(e), where) for e in error.errors(include_url=False)]
    if problems:
        raise Problems(list(dict.fromkeys(problems)))
    return value


def to_json(value: Any) -> Any:
    """Dataclasses, tuples, sets, paths as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(to_json(v) for v in value)
    if isinstance(value, Path):
        return value.as_posix()
    return value


def _problem(error: dict[str, Any], where: str) -> Problem:
    place = ".".join([where, *(str(part) for part in error["loc"])])
    if error["type"] in ("missing", "missing_argument"):
        return Problem(place, "is missing", fix=f"add {error['loc'][-1]}")
    got = error.get("input")
    message = str(error["msg"]).removeprefix("Value error, ")
    return Problem(place, message[:1].lower() + message[1:], got=repr(got)[:80])


def _unknown_keys(kind: Any, data: Any, where: str) -> Iterator[Problem]:
    """Keys that no field of the dataclass `kind`, or of one inside it, has.

    Stdlib dataclasses ignore unknown keys under pydantic unless each carries its own config.
    """
    if not isinstance(data, Mapping):
        return
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        known = [f.name for f in dataclasses.fields(kind)]
        for key, value in data.items():
            if key in known:
                yield from _unknown_keys(hints[key], value, f"{where}.{key}")
            else:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                fix = f"did you mean {near[0]!r}?" if near else "remove it"
                yield Problem(where, "unknown key", "one of " + ", ".join(known), str(key), fix)
        return
    for inner in typing.get_args(kind):
        if typing.get_origin(kind) is dict:
            for key, value in data.items():
                yield from _unknown_keys(inner, value, f"{where}.{key}")
        elif dataclasses.is_dataclass(inner):
            yield from _unknown_keys(inner, data, where)
