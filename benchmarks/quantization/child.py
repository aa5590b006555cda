"""What may crash or hang, in a process of its own: our run, and the scoring of one artifact.

    python child.py run   CASE.json OUT
    python child.py score CASE.json ARTIFACT ENGINE

`CASE.json` holds the zoo folder, the cache folder, the effort and the gates. A score goes to the
store, where the caller finds it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.quantization.cases import Case  # noqa: E402
from runtimes.errors import CompressError  # noqa: E402


def main() -> None:
    """One of the two; a typed error ends with its text as the last line on stderr."""
    verb, case_file, *rest = sys.argv[1:]
    told = json.loads(Path(case_file).read_text())
    case = Case(Path(told["folder"]), Path(told["cache"]), told["effort"])
    try:
        if verb == "run":
            _run(case, Path(rest[0]), told["gates"])
        else:
            _score(case, Path(rest[0]), rest[1])
    except CompressError as error:
        traceback.print_exc()
        print(" ".join(f"{type(error).__name__}: {error.text()}".split()), file=sys.stderr)
        sys.stderr.flush()
        os._exit(error.exit_code)  # an engine's own threads may not survive an orderly end


def _run(case: Case, out: Path, gates: list[str]) -> None:
    import compressor

    os.chdir(ROOT)  # metrics of the zoo are modules of this repository
    recipe = case.recipe(gates)
    model = recipe["model"].pop("source")
    compressor.compress(model, recipe, out=out, store=case.cache / "store")


def _score(case: Case, artifact: Path, engine: str) -> None:
    from runtimes.types import Artifact

    case.judge.score(Artifact.load(artifact), engine, "CPU", "score")


if __name__ == "__main__":
    main()
