"""`compress compare`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from compressor.schema import to_json


def compare_verb(args: argparse.Namespace) -> int:
    """`compress compare`."""
    from compressor.compare import compare, compare_lines

    found = compare(Path(args.a), Path(args.b))
    print(json.dumps(to_json(found), indent=1) if args.json else "\n".join(compare_lines(found)))
    return 0
