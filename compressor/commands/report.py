"""`compress report`."""

from __future__ import annotations

import argparse
from pathlib import Path


def report_verb(args: argparse.Namespace) -> int:
    """`compress report`: the reports again; with `--add`, after a board's results were taken in."""
    from compressor.from_board import add_result, read_result
    from compressor.output import locked
    from compressor.record import dump_record, load_record
    from compressor.report import terminal, write_reports

    given = Path(args.out)
    record = load_record(given)
    home = given.parent if given.is_file() else given
    for name in args.add:
        record = add_result(record, home, read_result(Path(name)))
    folder = Path(args.to) if args.to else home
    with locked(folder):
        write_reports(record, folder)
        if args.to or args.add:
            dump_record(record, folder / "run.json")
    print("\n".join([*(terminal(record) if args.add else ()), str(folder / "report.html")]))
    return record.exit_code if args.add else 0
