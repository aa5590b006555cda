"""The output folder: old content or new, one run at a time, depfiles that Make reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor import output
from runtimes.errors import UsageError
from runtimes.types import Artifact


def artifact(folder: Path, text: str) -> Artifact:
    folder.mkdir()
    (folder / "model.txt").write_text(text)
    return Artifact.write(folder, "text", "model.txt", [], [])


def test_placing_replaces_the_whole_folder(tmp_path: Path) -> None:
    first, second = artifact(tmp_path / "a", "one"), artifact(tmp_path / "b", "two")
    output.place(first, tmp_path / "out" / "x")
    (tmp_path / "out" / "x" / "stale").write_text("old")
    placed = output.place(second, tmp_path / "out" / "x")
    assert placed.path.read_text() == "two"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x"]
    assert not (placed.root / "stale").exists()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        output.locked(tmp_path),
        pytest.raises(UsageError, match="another run"),
        output.locked(tmp_path),
    ):
        raise AssertionError("unreachable")


def test_an_unwritable_output_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot be written"), output.locked(Path("/proc/out")):
        raise AssertionError("unreachable")


def test_a_depfile_escapes_spaces(tmp_path: Path) -> None:
    output.write_depfile(tmp_path / "d", tmp_path / "run.json", [tmp_path / "my model.onnx"])
    text = (tmp_path / "d").read_text()
    assert text.startswith(f"{tmp_path}/run.json: \\\n")
    assert "my\\ model.onnx" in text


def test_current_means_the_same_stamp_and_a_finished_run(tmp_path: Path) -> None:
    output.write_stamp(tmp_path, {"a": 1})
    assert not output.is_current(tmp_path, {"a": 1})
    (tmp_path / "run.json").write_text("{}")
    assert output.is_current(tmp_path, {"a": 1})
    assert not output.is_current(tmp_path, {"a": 2})
