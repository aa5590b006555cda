"""The files of a TensorRT bundle that run on the board, and running them where a GPU is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from runtimes.errors import BadArtifact, BuildFailed, RuntimeUnavailable

LAUNCHER = '''\
"""Build, check and time the TensorRT engine of this bundle: python build_engine.py --help."""

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


def build_here(
    folder: Path, *, seconds: float = 0.0, time_limit_s: float | None = None
) -> dict[str, Any]:
    """Build and check the engine of the bundle in `folder` on this machine's GPU.

    Args:
        folder: the bundle; gets `model.engine`, `engine.json` and `timing.cache`.
        seconds: how long to time it; 0: not at all.
        time_limit_s: end a build, or a check, that takes longer.

    Returns:
        What `build_engine.py --result-json` writes. A numeric mismatch is part of it (`exit_code`
        7, `status` built), since the engine is there to be looked at.

    Raises:
        RuntimeUnavailable: no driver, no TensorRT, or not a version or GPU the bundle is made for.
        BuildFailed: the parser or the builder gave up, memory or the time limit ran out.
        BadArtifact: the bundle is damaged.
    """
    from runtimes.trt.errors import BAD, UNSUPPORTED, TrtError
    from runtimes.trt.work import Options, blank, work

    result = blank()
    try:
        work(Options(folder, seconds=seconds, time_limit_s=time_limit_s), result)
    except TrtError as error:
        kinds = {UNSUPPORTED: RuntimeUnavailable, BAD: BadArtifact}
        raise kinds.get(error.exit_code, BuildFailed)(
            error.what,
            where=error.where or str(folder),
            expected=error.expected,
            got=error.got,
            fix=error.fix,
        ) from error
    return result
