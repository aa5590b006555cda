"""run.json: exact round trip, refusals that name the place, and the shipped schema."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from compressor.record import (
    SCHEMA_FILE,
    dump_record,
    json_schema,
    load_record,
    parse_record,
    record_text,
    schema_text,
)
from runtimes.errors import BadArtifact, UsageError
from tests.run_records import candidate, every_kind, record, target, timing

KINDS = every_kind()


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_exact(tmp_path, kind):
    dump_record(KINDS[kind], tmp_path / "run.json")
    assert load_record(tmp_path) == KINDS[kind]
    assert record_text(load_record(tmp_path)) == (tmp_path / "run.json").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_records_keep_the_shipped_schema(kind):
    jsonschema = pytest.importorskip("jsonschema", reason="only this check needs jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text()))
    validator.validate(json.loads(record_text(KINDS[kind])))


def test_shipped_schema_is_the_one_of_the_dataclasses():
    assert SCHEMA_FILE.read_text() == schema_text(), (
        "regenerate: SCHEMA_FILE.write_text(schema_text())"
    )


def test_schema_refuses_another_schema_number():
    jsonschema = pytest.importorskip("jsonschema", reason="only this check needs jsonschema")
    data = json.loads(record_text(record())) | {"schema": 2}
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(data)


def test_nan_is_refused_with_its_place(tmp_path):
    bad = record(
        target(candidates=[candidate("half", 0.0, 1.0, timings=[timing(1, float("nan"), None)])])
    )
    with pytest.raises(
        BadArtifact, match=r"targets\[0\]\.candidates\[0\]\.timings\[0\]\.p50_ms: nan"
    ):
        dump_record(bad, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_foreign_objects_are_refused_with_their_place(tmp_path):
    bad = record(host={"cpu": object()})
    with pytest.raises(BadArtifact, match=r"run\.host\.cpu: object is not plain JSON"):
        dump_record(bad, tmp_path)


def edited(**changes):
    return json.dumps(json.loads(record_text(record())) | changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "not a run record"),
        ("{}", "not a run record"),
        (edited(schema=2), r"another schema\n  expected 1, got 2"),
        (edited(seconds=float("nan")), "NaN is not a number"),
        (edited(seconds="3"), r"run\.seconds.*\n  expected a number, got '3'"),
        (edited(exit_code=True), r"run\.exit_code"),
        (edited(exit_code=1.5), r"run\.exit_code"),
        (edited(state="maybe"), r"run\.state.*\n  expected 'pass' or 'fail'"),
        (edited(targets={}), r"run\.targets.*\n  expected a list"),
        (edited(targets=[{"name": "x"}]), r"run\.targets\[0\]\.state: missing field"),
        (edited(reference=[]), r"run\.reference.*\n  expected an object"),
        (edited(recipe=3), r"run\.recipe.*\n  expected an object"),
    ],
)
def test_damaged_records_are_refused(text, words):
    with pytest.raises(BadArtifact, match=words) as error:
        parse_record(text)
    assert error.value.exit_code == 7


def test_an_interval_of_three_is_refused():
    data = json.loads(record_text(record()))
    data["targets"][0]["candidates"][0]["timings"][0]["p50_interval_ms"] = [1, 2, 3]
    with pytest.raises(BadArtifact, match=r"p50_interval_ms.*\n  expected a list of 2"):
        parse_record(json.dumps(data))


def test_missing_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such run"):
        load_record(tmp_path / "out")


def test_unknown_keys_are_ignored_and_missing_ones_default():
    data = json.loads(record_text(record()))
    del data["warnings"]
    assert parse_record(json.dumps(data | {"later": 1})) == record()


def test_reading_needs_neither_pydantic_nor_jsonschema(tmp_path, monkeypatch):
    for name in ("pydantic", "jsonschema"):
        monkeypatch.setitem(sys.modules, name, None)
    dump_record(record(), tmp_path)
    assert load_record(tmp_path) == record()


def test_unwritable_place_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        dump_record(record(), tmp_path / "file" / "run.json")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    import os

    dump_record(record(), tmp_path)
    before = (tmp_path / "run.json").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        dump_record(dataclasses.replace(record(), seed=9), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_bytes() == before
