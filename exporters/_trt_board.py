"""The files of a TensorRT bundle that run on the board: `trt/` and its launcher."""

from __future__ import annotations

import shutil
from pathlib import Path

LAUNCHER = '''\
"""Build, check and time the TensorRT engine of this bundle: python build_engine.py --help."""

import sys

sys.dont_write_bytecode = True  # the bundle stays as it came

from trt.main import entry

entry()
'''


def copy_board_files(folder: Path) -> None:
    """Put `build_engine.py` and `trt/`, a copy of `runtimes/trt/`, into `folder`.

    The same bytes every time: sources alone, no byte code, no times.
    """
    import runtimes.trt

    source, target = Path(runtimes.trt.__file__).parent, folder / "trt"
    target.mkdir(parents=True)
    for file in sorted(source.glob("*.py")):
        shutil.copyfile(file, target / file.name)
    (folder / "build_engine.py").write_text(LAUNCHER, encoding="utf-8")
