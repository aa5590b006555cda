"""Train models, or fetch trained ones, and write each with its data into a folder of its own.

python -m examples.zoo bert lstm --out out/zoo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.zoo import MODELS, load
from examples.zoo.folder import make
from examples.zoo.table import write


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to make")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    parser.add_argument("--out", type=Path, default=Path("out/zoo"), help="where folders go")
    parser.add_argument(
        "--keep-weights", action="store_true", help="do not train again what has weights there"
    )
    parser.add_argument(
        "--table", action="store_true", help="write zoo.json and the README's table from --out"
    )
    args = parser.parse_args()
    if args.table:
        write(args.out)
        return
    if not (args.names or args.all or args.list):
        parser.error("name a model, or say --all; --list shows them")
    for name in args.names or MODELS:
        module = load(name)
        if args.list:
            print(f"{name:16}{module.ABOUT.kind:22}{module.ABOUT.architecture}")
            continue
        card = make(name, module, args.out, keep=args.keep_weights)
        trained = f", {card['seconds_trained']} s of training" if card["seconds_trained"] else ""
        print(f"{name}: {card['score']:.4f}, {card['bytes']:,} bytes{trained}", flush=True)


if __name__ == "__main__":
    main()
