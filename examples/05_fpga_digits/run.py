"""The same job as `compress run recipe.yaml`, from Python; writes demo.json beside this file.

python run.py [OUTPUT FOLDER]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import compressor

HERE = Path(__file__).parent


def main(out: Path) -> None:
    began = time.monotonic()
    result = compressor.compress(None, HERE / "recipe.yaml", out=out)
    candidate = result.record.target("fpga").candidates[0]
    resources = json.loads((result.artifacts["fpga"].root / "resources.json").read_text("utf-8"))
    found = {
        "test_accuracy": candidate.score.value,
        "original_accuracy": result.record.reference.score.value,
        "samples": candidate.score.n,
        "minutes": round((time.monotonic() - began) / 60, 1),
        **resources,
    }
    (HERE / "demo.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    result.raise_for_verdict()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/fpga-digits"))
