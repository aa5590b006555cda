"""What `pip install edge-compressor` puts on a disk: the core, without any extra.

    python benchmarks/install_size/run.py

Makes a virtual environment, installs this checkout with the pinned versions, and writes the bytes
added to site-packages (compiled `.pyc` files included) to `results.json` beside this file.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "venv", scratch], check=True)
        (packages,) = Path(scratch).glob("lib/python*/site-packages")
        before = size(packages)
        pip = [f"{scratch}/bin/python", "-m", "pip", "install", "-q"]
        constraints = str(ROOT / "constraints.txt")
        subprocess.run([*pip, "-c", constraints, str(ROOT)], check=True)
        added = size(packages) - before
        largest = {p.name: size(p) for p in packages.iterdir() if p.is_dir()}
    top = dict(sorted(largest.items(), key=lambda item: -item[1])[:8])
    result = {"core_bytes": added, "core_mb": round(added / 1e6, 1), "largest_bytes": top}
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
