"""What a search keeps of its attempts, and what it does again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.quantization import tried
from compressor.quantization.tried import Tried
from runtimes.errors import BuildFailed, CompressError, Unsupported
from runtimes.types import Artifact

ASSIGN = {"conv": "int8", "head": "w4"}


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Artifact]:
    """Writes an artifact; `names` has those it was asked for."""

    def made(name: str) -> Artifact:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"weights")
        return Artifact.write(folder, "onnx", "model.onnx", (), (), {"notes": [name]})

    return made


def failing(error: CompressError) -> Callable[[str], Artifact]:
    def make(_: str) -> Artifact:
        raise error

    return make


def never(*_: object) -> Artifact:
    raise AssertionError("made again")


def test_an_assignment_is_built_once_whatever_its_order(tmp_path: Path, make) -> None:
    first = Tried(tmp_path / "kept").artifact(ASSIGN, make)
    turned = dict(reversed(ASSIGN.items()))
    again = Tried(tmp_path / "kept").artifact(turned, never)
    assert again.digest() == first.digest()
    assert again.facts == first.facts
    other = Tried(tmp_path / "kept").artifact({**ASSIGN, "head": "w8"}, make)
    assert other.root != first.root


def test_a_damaged_build_is_made_again(tmp_path: Path, make) -> None:
    kept = Tried(tmp_path / "kept")
    first = kept.artifact(ASSIGN, make)
    first.path.write_bytes(b"half")
    again = kept.artifact(ASSIGN, lambda name: make(name + "again"))
    again.verify()
    assert again.path.read_bytes() == b"weights"


def test_what_a_kill_left_of_a_copy_is_no_build(tmp_path: Path, make) -> None:
    kept = Tried(tmp_path / "kept")
    whole = kept.artifact(ASSIGN, make)
    whole.root.rename(whole.root.with_suffix(".new"))  # killed before its name was right
    (whole.root.with_suffix(".new") / "model.onnx").write_bytes(b"wei")
    again = kept.artifact(ASSIGN, lambda name: make(name + "again"))
    again.verify()


def test_a_refusal_is_kept_and_any_other_failure_is_not(tmp_path: Path, make) -> None:
    kept = Tried(tmp_path / "kept")
    with pytest.raises(BuildFailed):
        kept.artifact(ASSIGN, failing(BuildFailed("killed for memory")))
    assert kept.artifact(ASSIGN, make).facts["notes"]
    refused = {"conv": "int8"}
    with pytest.raises(Unsupported, match="no INT4 here"):
        kept.artifact(refused, failing(Unsupported("no INT4 here")))
    with pytest.raises(Unsupported, match="no INT4 here"):
        kept.artifact(refused, never)


def test_times_are_taken_once_on_a_kind_of_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {("conv", "int8"): 0.25, ("conv", "float"): 0.75}
    measured = []

    def measure() -> tuple[float, tried.Times]:
        measured.append(1)
        return 1.5, times

    for _ in range(2):
        assert Tried(tmp_path / "kept").timing(ASSIGN, measure) == (1.5, times)
    assert len(measured) == 1
    monkeypatch.setattr(tried, "facts", lambda: {"isa": "another"})
    Tried(tmp_path / "kept").timing(ASSIGN, measure)
    assert len(measured) == 2
