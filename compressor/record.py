"""Reading and writing `run.json`, which is exactly one `RunRecord`.

Reading is checked field by field against the dataclasses themselves, so a damaged file names the
field that is wrong; it needs neither pydantic nor jsonschema. `compressor/schemas/run.schema.json`
says the same to other programs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import types
import typing
from pathlib import Path
from typing import Any, Literal, NoReturn

from compressor.result import RUN_SCHEMA, RunRecord
from runtimes.errors import BadArtifact, UsageError

RUN_FILE = "run.json"
SCHEMA_FILE = Path(__file__).parent / "schemas" / "run.schema.json"


def record_text(record: RunRecord) -> str:
    """`record` as the text of `run.json`; raises `BadArtifact` naming a NaN or a foreign object."""
    data = dataclasses.asdict(record)
    try:
        return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    except (ValueError, TypeError) as error:
        where, what = _first_unwritable(data, "run")
        raise BadArtifact(
            what, where=where, expected="plain JSON with finite numbers", fix="report this as a bug"
        ) from error


def dump_record(record: RunRecord, path: Path) -> None:
    """Write `record` to `path` (a file, or a folder that gets `run.json`) in one atomic step.

    Raises:
        BadArtifact: the record holds NaN, an infinity, or something that is not JSON.
        UsageError: the place cannot be written.
    """
    target = path / RUN_FILE if path.is_dir() else path
    write_atomic(target, record_text(record).encode("utf-8"))


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old bytes or the new ones, never a part.

    Raises:
        UsageError: the folder cannot be made or written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix="." + path.name + ".")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def load_record(path: Path) -> RunRecord:
    """The record in `path`, a run's output folder or its `run.json`.

    Keys this version does not know are ignored; missing ones take the default of their field.

    Raises:
        UsageError: there is no such file.
        BadArtifact: it is not JSON, of another schema, holds NaN, or a field has the wrong type.
    """
    source = path / RUN_FILE if path.is_dir() else path
    try:
        text = source.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            "no such run",
            where=str(source),
            expected="the output folder of `compress run`, or its run.json",
            fix="give the folder that was named with -o",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadArtifact(f"cannot be read: {error}", where=str(source)) from error
    return parse_record(text, where=str(source))


def parse_record(text: str, *, where: str = RUN_FILE) -> RunRecord:
    """The record in `text`; raises `BadArtifact` as `load_record` does."""
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadArtifact(
            f"damaged: {error}", where=where, fix="run again, or restore the file"
        ) from error
    if not isinstance(data, dict) or "schema" not in data:
        raise BadArtifact("not a run record", where=where, expected='a JSON object with "schema"')
    if data["schema"] != RUN_SCHEMA:
        raise BadArtifact(
            "run record of another schema",
            where=where,
            expected=str(RUN_SCHEMA),
            got=str(data["schema"])[:40],
            fix="read it with the version of compress that wrote it, or run again",
        )
    record = _build(RunRecord, data, where + ": run")
    assert isinstance(record, RunRecord)
    return record


def from_json(kind: type, value: Any, where: str) -> Any:
    """`value` as an object of one of the record's dataclasses; `where` is its path for messages.

    Raises:
        BadArtifact: a field is missing or has the wrong type.
    """
    return _build(kind, value, where)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `run.json`, made from the dataclasses."""
    from pydantic import TypeAdapter

    made = TypeAdapter(RunRecord).json_schema()
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edge-compressor:run:{RUN_SCHEMA}",
    }
    made["properties"]["schema"] = {"const": RUN_SCHEMA, "title": "Schema", "type": "integer"}
    made["required"] = [*made["required"], "schema"]
    return head | made


def schema_text() -> str:
    """The text of the shipped `run.schema.json`."""
    return json.dumps(json_schema(), indent=1, sort_keys=True) + "\n"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number a record may hold")


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot be written: {error.strerror}",
        where=str(path),
        fix="name a folder you may write to, with room on its disk",
    )


def _first_unwritable(value: Any, where: str) -> tuple[str, str]:
    """Path and description of the first thing in `value` that JSON cannot hold."""
    if isinstance(value, dict):
        pairs = [(f"{where}.{key}", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = [(f"{where}[{i}]", item) for i, item in enumerate(value)]
    elif isinstance(value, float) and not math.isfinite(value):
        return where, f"{value} is not a finite number"
    elif value is None or isinstance(value, (str, int, float)):
        return "", ""
    else:
        return where, f"{type(value).__name__} is not plain JSON"
    found = (_first_unwritable(item, at) for at, item in pairs)
    return next((hit for hit in found if hit[0]), ("", ""))


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` from JSON as an object of type `kind`; `where` is its path for messages."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value if value in args else _refuse(value, where, " or ".join(map(repr, args)))
    if origin in (typing.Union, types.UnionType):
        rest = [arg for arg in args if arg is not type(None)]
        return None if value is None else _build(rest[0], value, where)
    if origin is list:
        items = value if isinstance(value, list) else _refuse(value, where, "a list")
        return [_build(args[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is tuple:
        fits = isinstance(value, list) and len(value) == len(args)
        items = value if fits else _refuse(value, where, f"a list of {len(args)}")
        return tuple(_build(arg, item, where) for arg, item in zip(args, items, strict=True))
    if origin is dict:
        pairs = value if isinstance(value, dict) else _refuse(value, where, "an object")
        return {key: _build(args[1], item, f"{where}.{key}") for key, item in pairs.items()}
    return _scalar(kind, value, where)


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        _refuse(value, where, f"an object ({kind.__name__})")
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            given[field.name] = _build(
                hints[field.name], value[field.name], f"{where}.{field.name}"
            )
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise BadArtifact("missing field", where=f"{where}.{field.name}")
    return kind(**given)


def _scalar(kind: type, value: Any, where: str) -> Any:
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        _refuse(value, where, names[kind])
    return value


def _refuse(value: Any, where: str, expected: str) -> NoReturn:
    raise BadArtifact(
        "wrong type in run record", where=where, expected=expected, got=repr(value)[:60]
    )
