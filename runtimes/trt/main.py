"""`python build_engine.py`: build this bundle's engine on this board, check it, time it.

exit codes: 0 validated · 2 usage (flag, folder) · 4 no driver, no TensorRT, or a version or GPU
that the bundle was not made for · 5 parser, builder or engine gave up, memory, time limit ·
7 damaged files, or numbers other than the reference's · 70 bug · 130/143 interrupted
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Sequence

from .errors import BUG, TrtError
from .files import write_json
from .work import Options, blank, work

_SIZES = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9, "b": 1}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Everything from `trt.json` to results; returns the exit code.

    With `--result-json FILE` the results are written whatever the outcome, in one piece.
    """
    args = _parser().parse_args(argv)
    result = blank()
    try:
        work(_options(args), result)
    except TrtError as error:
        _failed(result, error.exit_code, error.sentence())
        sys.stderr.write(f"build_engine: {error.text()}\n")
    except KeyboardInterrupt as stop:
        _failed(result, 143 if isinstance(stop, _Terminated) else 130, "interrupted")
        sys.stderr.write("build_engine: interrupted; timing.cache and a finished engine are kept\n")
    except Exception as error:  # noqa: BLE001 - the one place where a bug becomes exit 70
        traceback.print_exc()
        _failed(result, BUG, f"bug: {type(error).__name__}: {error}")
    try:
        if args.result_json:
            write_json(Path(args.result_json), result)
    except TrtError as error:
        sys.stderr.write(f"build_engine: {error.text()}\n")
        return int(result["exit_code"]) or error.exit_code
    sys.stdout.write("\n".join(summary(result)) + "\n")
    return int(result["exit_code"])


class _Terminated(KeyboardInterrupt):
    """SIGTERM, so that what was begun is cleared away."""


def entry() -> NoReturn:
    """The launcher: `main`, with a request to end handled like an interruption."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())


def _terminated(_number: int, _frame: object) -> NoReturn:
    raise _Terminated


def _failed(result: Dict[str, Any], code: int, reason: str) -> None:
    result["exit_code"], result["reason"] = code, reason


def summary(result: Dict[str, Any]) -> List[str]:
    """The results as a person reads them."""
    lines = [f"{result['status']}, exit {result['exit_code']}"]
    lines[0] += f": {result['reason']}" if result["reason"] else ""
    if result["device"]:
        device, versions = result["device"], result["versions"]
        lines.append(f"  on {device['name']} (SM {device['sm']}), {_listed(versions)}")
    if result["engine"]:
        engine = result["engine"]
        lines.append(
            f"  engine {engine['bytes']:,} bytes, built in {engine['build_seconds']:.1f} s"
        )
    if result["layers"]:
        counted = {k: v for k, v in result["layers"].items() if isinstance(v, int) and v}
        lines.append(f"  layers: {_listed(counted)}")
    for name, row in result["numeric"].items():
        lines.append(
            f"  {name}: SQNR {row['sqnr_db']:.1f} dB, differs by at most {row['max_abs']:.3g}"
        )
    for row in result["timing"]:
        graph = "with" if row["graph"] else "without"
        lines.append(
            f"  batch {row['batch']}, {graph} CUDA graph: p50 {row['p50_ms']:.3f} ms, p99 "
            f"{row['p99_ms']:.3f}, transfers {row['h2d_ms'] + row['d2h_ms']:.3f}, "
            f"enqueue {row['enqueue_ms']:.3f} ({row['samples']} samples)"
        )
        if row.get("energy_mj") is not None:
            power = row["power"]
            lines.append(
                f"    {power['mean_mw'] / 1e3:.2f} W ({power['of']}, by {power['by']}), "
                f"{row['energy_mj']:.2f} mJ an inference"
            )
        lines += [f"    {doubt}" for doubt in row["doubts"]]
    return lines + [f"  note: {note}" for note in result["notes"]]


def _listed(values: Dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _options(args: argparse.Namespace) -> Options:
    return Options(
        bundle=Path(args.bundle).resolve(),
        engine=args.engine,
        api=args.api,
        gpu=args.gpu,
        trtexec=args.trtexec,
        use_trtexec=args.use_trtexec,
        rebuild=args.rebuild,
        no_build=args.no_build,
        try_anyway=args.try_anyway,
        time_limit_s=args.time_limit,
        workspace_bytes=args.workspace,
        dla_core=args.dla,
        seconds=args.seconds,
        batches=tuple(args.batch),
        graph={"off": (False,), "on": (True,), "both": (False, True)}[args.graph],
    )


def _parser() -> argparse.ArgumentParser:
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="build_engine.py",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    here = Path(__file__).resolve().parents[1]
    add("bundle", nargs="?", default=str(here), help="the bundle's folder (default: this one)")
    add("--result-json", metavar="FILE", help="results, for `compress report --add`")
    add("--engine", metavar="NAME", help="the engine's file name (default: model.engine)")
    add("--rebuild", action="store_true", help="build again even if a fitting engine is there")
    add("--no-build", action="store_true", help="check and time the engine that is there")
    add("--time-limit", type=_positive, metavar="S", help="end a build or a run after so long")
    add(
        "--workspace", type=_size, metavar="SIZE", help="the builder's scratch memory: 512MiB, 2GiB"
    )
    add("--dla", type=int, metavar="CORE", help="layers on a DLA core where it takes them")
    add("--seconds", type=float, default=3.0, metavar="S", help="of each timing (3); 0: none")
    add("--batch", type=_count, action="append", default=[], metavar="N", help="batch to time on")
    add("--graph", choices=("off", "on", "both"), default="both", help="time with CUDA graphs")
    add("--gpu", type=int, default=0, metavar="N", help="which GPU (0)")
    text = "tensorrt_rtx makes model.rtx.plan, which is no TensorRT engine"
    add("--api", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt", help=text)
    add("--trtexec", metavar="PATH", help="where trtexec is")
    add("--use-trtexec", action="store_true", help="even if the Python binding is there")
    add("--try-anyway", action="store_true", help="on a version or GPU outside the bundle's range")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("more than 0 seconds, please")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1, please")
    return value


def _size(text: str) -> int:
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text[len(number) :].lower() or "b"
    if unit not in _SIZES:
        raise argparse.ArgumentTypeError("a size such as 512MiB or 2GiB, please")
    return int(float(number) * _SIZES[unit])
