"""`compress verify`, `unpack` and `delta`."""

from __future__ import annotations

import argparse
from pathlib import Path


def verify_verb(args: argparse.Namespace) -> int:
    """`compress verify`."""
    from compressor.package import verify_package

    base = Path(args.base) if args.base else None
    for package in args.package:
        if len(args.package) > 1:
            print(package)
        print("\n".join(verify_package(Path(package), base=base)))
    return 0


def unpack_verb(args: argparse.Namespace) -> int:
    """`compress unpack`."""
    from compressor.package import unpack_package

    base = Path(args.base) if args.base else None
    count = unpack_package(Path(args.package), Path(args.out), base=base)
    print(f"{args.out}: {count} files, each with the SHA-256 its manifest names")
    return 0


def delta_verb(args: argparse.Namespace) -> int:
    """`compress delta`."""
    from compressor.package import build_delta

    made = build_delta(Path(args.old), Path(args.new), Path(args.out))
    size, whole = made.stat().st_size, Path(args.new).stat().st_size
    print(f"{made}: {size:,} bytes, {size / whole:.1%} of the {whole:,} of {args.new}")
    return 0
