"""A store on a file system that is really full: a clear error, and nothing broken behind it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.store import Store
from tests.e2e.conftest import Bench, run_flags


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_exit_5_and_the_store_stays_sound(bench: Bench, small_disk: Path) -> None:
    flags = run_flags("nodisk", "--max-drop", "0.2")
    done = bench.compress(*flags, env={"COMPRESS_HOME": str(small_disk)})
    assert done.returncode == 5, done.stderr
    assert "no space left on the disk" in done.stderr
    assert "fix: `compress store gc" in done.stderr
    assert not (bench.folder / "nodisk" / "run.json").exists()
    assert not list((small_disk / "tmp").iterdir())
    kept = [p.name for p in Store(small_disk).root.glob("objects/*/*")]
    assert all(Store(small_disk).artifact(key) is not None for key in kept)
