"""Example 01 three times: cold, again, and with a clean store; what it reaches and what repeats.

    python benchmarks/example_01/run.py --effort default

Writes `results.json` beside this file: per target size, drop, speed-ups with intervals, and the
seconds of each run, with and without timing; and whether all digests came out the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECIPE = HERE.parents[1] / "examples" / "01_image_classifier" / "recipe.yaml"


def compress(out: Path, store: Path, effort: str) -> tuple[int, float, float]:
    """(exit code, seconds, seconds without timing) of one run."""
    command = [sys.executable, "-m", "compressor", "run", str(RECIPE)]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--effort", effort, "-o", str(out)],
        env=os.environ | {"COMPRESS_HOME": str(store)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    return done.returncode, seconds, seconds - timing_seconds(done.stderr)


def timing_seconds(log: str) -> float:
    """How long the pieces called `time` took, by the clock in the progress lines."""
    total, before = 0.0, None
    for clock, text in re.findall(r"^\[(\d\d:\d\d:\d\d)\] (.*)$", log, re.M):
        hours, minutes, seconds = map(int, clock.split(":"))
        now = 3600 * hours + 60 * minutes + seconds
        if before is not None and re.search(r": time\b", text):
            total += (now - before) % 86400
        before = now
    return total


def reached(record: dict[str, Any]) -> dict[str, Any]:
    """The figures of what each target ships."""
    made = {}
    for target in record["targets"]:
        shipped = next(c for c in target["candidates"] if c["name"] == target["shipped"])
        compared = shipped["comparison"]
        made[target["name"]] = {
            "shipped": target["shipped"],
            "state": target["state"],
            "size_bytes": shipped["size_bytes"],
            "size_reduction": 1 - shipped["size_bytes"] / record["reference"]["size_bytes"],
            "top1": shipped["score"]["value"],
            "drop": compared["drop"],
            "drop_interval_90": compared["interval"],
            "agreement": compared["agreement"],
            "timings": [
                {"batch": t["batch"], "p50_ms": t["p50_ms"], "ratios": t["ratios"],
                 "rounds": t["rounds"], "doubts": t["doubts"]}
                for t in shipped["timings"]
            ],
        }  # fmt: skip
    return made


def digests(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [(step["step"], step["digest"]) for step in record["steps"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--effort", default="default", choices=("quick", "default", "certify"))
    effort = parser.parse_args().effort
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        runs, records = {}, {}
        for name, store in (("cold", "a"), ("again", "a"), ("clean_store", "b")):
            code, seconds, apart = compress(root / name, root / store, effort)
            records[name] = json.loads((root / name / "run.json").read_text())
            runs[name] = {
                "exit_code": code,
                "seconds": round(seconds, 1),
                "seconds_apart_from_timing": round(apart, 1),
                "steps_reused": sum(s["status"] == "hit" for s in records[name]["steps"]),
                "steps": len(records[name]["steps"]),
            }
    same = {n: digests(records[n]) == digests(records["cold"]) for n in ("again", "clean_store")}
    result = {
        "effort": effort,
        "host": records["cold"]["host"],
        "reference": records["cold"]["reference"],
        "runs": runs,
        "same_digests": same,
        "targets": reached(records["cold"]),
    }
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: result[k] for k in ("runs", "same_digests", "targets")}, indent=1))


if __name__ == "__main__":
    main()
