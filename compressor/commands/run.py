"""`compress run`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from compressor.recipe import Recipe

COLOURS = {
    "PASS": "32",
    "FAIL": "31",
    "ERROR": "31",
    "INCONCLUSIVE": "33",
    "NOT JUDGED": "33",
}


def run_verb(args: argparse.Namespace, recipe_and_base: tuple[Recipe, Path]) -> int:
    """`compress run`: execute, then the summary on stdout (or run.json with `--json`)."""
    from compressor import output
    from compressor.inputs import input_files, stamp
    from compressor.progress import on_stderr
    from compressor.record import load_record, record_text
    from compressor.run import execute
    from compressor.session import Request
    from compressor.store import Store

    recipe, base = recipe_and_base
    out = Path(args.out).absolute()
    flags = {"effort": args.effort, "judged": args.require_judged, "on": args.on_inconclusive}
    now = stamp(recipe, base, flags)
    if (args.if_changed or args.depfile) and output.is_current(out, now):
        record = load_record(out)
        print(f"{out}: up to date (measured {record.started_utc})", file=sys.stderr)
    else:
        with on_stderr(args.quiet) as progress:
            record = execute(
                Request(
                    recipe=recipe,
                    base_dir=base,
                    out=out,
                    store=Store(),
                    progress=progress,
                    command=shlex.join(["compress", *sys.argv[1:]]),
                    require_judged=args.require_judged,
                    on_inconclusive=args.on_inconclusive,
                    effort=args.effort,
                )
            )
        output.write_stamp(out, now)
    if args.depfile:
        own = Path(args.source) if args.source.endswith((".yaml", ".yml")) else None
        files = input_files(recipe, base, own)
        output.write_depfile(Path(args.depfile), out / "run.json", files)
    print(record_text(record) if args.json else _summary(record, out))
    return record.exit_code


def _summary(record: Any, out: Path) -> str:
    from compressor.report import terminal

    lines = [*terminal(record), f"report: {out / 'report.html'}"]
    return "\n".join(_coloured(line) for line in lines)


def _coloured(line: str) -> str:
    """Verdict words at the start of a line in colour, on a terminal only."""
    if not sys.stdout.isatty():
        return line
    for word, colour in COLOURS.items():
        if line.startswith(word):
            return f"\033[1;{colour}m{word}\033[0m{line[len(word) :]}"
    return line
