"""The `compress` command: arguments, exit codes, and nothing that belongs to the engine."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from compressor.arguments import count, data_flags, effort_flag, model_flags
from compressor.commands.packages import delta_verb, unpack_verb, verify_verb
from runtimes.errors import CompressError, UsageError

if TYPE_CHECKING:
    from compressor.recipe import Recipe

EXIT_CODES = """\
exit codes: 0 passed · 1 a gate failed · 2 usage (recipe, flag, data) · 3 inconclusive ·
  4 unsupported, or a tool is missing · 5 build failed · 6 board failed · 7 bad artifact ·
  70 bug (a crash log is written) · 130/143 interrupted (finished steps are kept)"""

EXAMPLES = """\
examples:
  compress run recipe.yaml -o out
  compress run model.onnx --target openvino --calibration calib.npz --evaluation eval.npz \\
               --metric top1 --max-drop 0.01 -o out
  compress plan recipe.yaml            what would run, or every problem at once
  compress sensitivity model.onnx --target openvino --calibration calib.npz
  compress explain out                 why not smaller, faster, more accurate
"""


class Interrupted(BaseException):
    """SIGTERM, so that running steps unwind and the store stays sound."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; only help and `--version` exit by themselves."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.verb is None:
        parser.print_help()
        return 2
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.WARNING, format="%(message)s"
    )
    try:
        code: int = args.handler(args)
        return code
    except CompressError as error:
        if args.verbose:
            traceback.print_exc()
        _say_error(args, error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; finished steps are kept, run again to go on", file=sys.stderr)
        return 130
    except Interrupted:
        print("terminated; finished steps are kept, run again to go on", file=sys.stderr)
        return 143
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the one place where a bug becomes exit 70
        return _unexpected(args, error)


def entry() -> NoReturn:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())


def _terminated(_number: int, _frame: object) -> NoReturn:
    raise Interrupted


def _say_error(args: argparse.Namespace, error: CompressError) -> None:
    print(f"compress {args.verb}: {error.text()}", file=sys.stderr)
    if getattr(args, "json", False):
        data = {
            "error": type(error).__name__,
            "where": error.where,
            "what": error.what,
            "expected": error.expected,
            "got": error.got,
            "fix": error.fix,
            "exit_code": error.exit_code,
        }
        print(json.dumps(data))


def _unexpected(args: argparse.Namespace, error: Exception) -> int:
    """What the user's own code raised is theirs to repair (2); anything else is our bug (70)."""
    from compressor.usercode import users_error

    users = users_error(error)
    if users is None:
        return _crash(args, error)
    if args.verbose:
        traceback.print_exc()
    _say_error(args, users)
    return users.exit_code


def _crash(args: argparse.Namespace, error: Exception) -> int:
    """A bug is ours: keep what is needed to find it, and say where it lies."""
    import compressor

    handle, name = tempfile.mkstemp(prefix="compress-crash-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as log:
        log.write(f"edge-compressor {compressor.__version__}, Python {platform.python_version()}, ")
        log.write(f"{platform.platform()}\narguments: {sys.argv[1:]}\n\n")
        traceback.print_exception(error, file=log)
    if args.verbose:
        traceback.print_exc()
    print(
        f"compress {args.verb}: internal error: {type(error).__name__}: {error}\n"
        f"  this is a bug; the crash log is {name}\n"
        "  fix: report it with that file; finished steps are kept",
        file=sys.stderr,
    )
    return 70


# ── the parser ───────────────────────────────────────────────────────────────────────────────────


def build_parser() -> argparse.ArgumentParser:
    """Every verb with its flags."""
    parser = argparse.ArgumentParser(
        prog="compress",
        description="Compress trained models for edge targets, and prove it on the target.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    verbs = parser.add_subparsers(dest="verb", metavar="<verb>", title="verbs")
    _add_run(verbs)
    _add_plan(verbs)
    _add_check(verbs)
    _add_sensitivity(verbs)
    _add_results(verbs)
    _add_packages(verbs)
    _add_bench(verbs)
    _add_housekeeping(verbs)
    for verb in set(verbs.choices.values()):
        verb.add_argument("-v", "--verbose", action="store_true", help="say more; show tracebacks")
    parser.set_defaults(verbose=False)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_args: Any) -> None:
        import compressor

        print(f"edge-compressor {compressor.__version__}")
        parser.exit()


def _verb(verbs: Any, name: str, handler: Callable[..., int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def _add_run(verbs: Any) -> None:
    parser = _verb(verbs, "run", run, "compress, build, judge and package a model")
    model_flags(parser)
    add = parser.add_argument
    add("-o", "--out", default="compress-out", help="output folder (default: compress-out)")
    effort_flag(parser, None)
    add("--require-judged", action="store_true", help="exit 3 if a gate cannot be judged")
    add("--on-inconclusive", choices=("fail", "warn"), default="fail", help="exit 3, or 0 and warn")
    add("--if-changed", action="store_true", help="do nothing if the output is up to date")
    add("--depfile", metavar="FILE", help="write a Make/Ninja depfile; implies --if-changed")
    add("--json", action="store_true", help="print run.json on stdout")
    add("-q", "--quiet", action="store_true", help="no progress")


def _add_plan(verbs: Any) -> None:
    parser = _verb(verbs, "plan", plan, "show what would run, or every problem at once")
    model_flags(parser)
    parser.add_argument("--deep", action="store_true", help="also build a torch module and look")
    parser.add_argument("--json", action="store_true", help="machine output on stdout")


def _add_check(verbs: Any) -> None:
    text = "say per node what a target will not take, or not in INT8, and what to change"
    parser = _verb(verbs, "check", check, text)
    parser.add_argument("source", metavar="MODEL", help="model.onnx")
    add = parser.add_argument
    add("--target", action="append", default=[], metavar="T", help="onnxruntime, openvino, …")
    add("--keep-float", action="append", default=[], metavar="GLOB", help="layers left float")
    add("--shape", action="append", default=[], metavar="INPUT=R", help="image=1, image=1..8@4")
    parser.add_argument("--all", action="store_true", help="list INT8 nodes too")
    parser.add_argument("--json", action="store_true", help="machine output on stdout")


def _add_sensitivity(verbs: Any) -> None:
    text = "rank layers by what lower precision of each costs, and say which to keep float"
    parser = _verb(verbs, "sensitivity", sensitivity, text)
    data_flags(parser)
    add = parser.add_argument
    text = "what the layers become (default: int8); int8-w4: INT8 with weights stored in 4 bits"
    choices = ("int8", "int8-w4", "w8", "w4", "half")
    add("--precision", choices=choices, default="int8", help=text)
    add("--sqnr", type=float, default=20.0, metavar="DB", help="goal of the outputs' SQNR (20)")
    add("--samples", type=count, default=64, metavar="N", help="measure on this many (64)")
    add("--minutes", type=float, metavar="M", help="end after about this long (default: no limit)")
    text = "also find where this candidate leaves the original: out/candidates/…, or an ONNX file"
    add("--against", metavar="ARTIFACT", help=text)
    add("--all", action="store_true", help="list every layer")
    add("--json", action="store_true", help="machine output on stdout")
    add("-q", "--quiet", action="store_true", help="no progress")


def _add_results(verbs: Any) -> None:
    parser = _verb(verbs, "explain", explain, "why not smaller, faster, more accurate")
    parser.add_argument("out", help="a run's output folder")
    parser = _verb(verbs, "compare", compare, "two runs or two artifacts: what differs")
    parser.add_argument("a", help="a run's output folder, or an artifact's (out/openvino)")
    parser.add_argument("b", help="the one to compare it with")
    parser.add_argument("--json", action="store_true", help="machine output on stdout")
    parser = _verb(verbs, "report", report, "write html, md, json and junit again from run.json")
    parser.add_argument("out", help="a run's output folder")
    parser.add_argument("--to", metavar="DIR", help="write there instead")
    text = "take in what a board told of a bundle of this run, judge again, exit as the run would"
    parser.add_argument("--add", action="append", default=[], metavar="R.JSON", help=text)


def _add_packages(verbs: Any) -> None:
    base = "of a delta: the package that it was made from, or the folder it was unpacked into"
    parser = _verb(verbs, "verify", verify_verb, "check a package: digests, versions, outputs")
    parser.add_argument("package", nargs="+", help="out/packages/x.tar.gz")
    parser.add_argument("--base", metavar="OLD", help=base)
    parser = _verb(verbs, "unpack", unpack_verb, "write a package's files, the model decoded")
    parser.add_argument("package", help="out/packages/x.tar.gz, or a delta")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--base", metavar="OLD", help=base)
    text = "code a package as its difference from the one that its devices have"
    parser = _verb(verbs, "delta", delta_verb, text)
    parser.add_argument("old", help="the package they have")
    parser.add_argument("new", help="the package they shall have")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="x.tar.gz")


def _add_bench(verbs: Any) -> None:
    text = "time artifacts against each other, interleaved, with intervals"
    parser = _verb(verbs, "bench", bench, text)
    add = parser.add_argument
    add("artifacts", nargs="+", help="artifact folders (out/openvino); the first is the baseline")
    add("--batch", type=count, action="append", metavar="N", help="batch size; repeatable")
    add("--threads", type=count, default=1, metavar="N", help="engine threads (default: 1)")
    effort_flag(parser, "default")
    add("--feeds", metavar="NPZ", help="inputs to time on (else seeded examples)")
    add("--gate", action="append", default=[], metavar="G", help="speedup>=1.5, p99<=9ms, …")
    add("--device", default="CPU", help="the engine's device (default: CPU)")
    add("--seed", type=int, default=0, help="of the order of measurement")
    add("--json", action="store_true", help="machine output on stdout")


def _add_housekeeping(verbs: Any) -> None:
    parser = _verb(verbs, "doctor", doctor, "what is installed here, and what is missing")
    parser.add_argument("--json", action="store_true", help="machine output on stdout")
    parser = _verb(verbs, "targets", targets, "the targets and steps there are, and their options")
    parser.add_argument("--json", action="store_true", help="machine output on stdout")
    parser = _verb(verbs, "store", store, "look after the store of finished steps")
    parser.add_argument("action", choices=("info", "gc"), help="tell its size, or drop old steps")
    add = parser.add_argument
    add("--max-age-days", type=float, default=30.0, metavar="D", help="gc: unused for (30)")
    add("--max-bytes", type=int, metavar="N", help="gc: then the oldest, until it is this small")


# ── the verbs ────────────────────────────────────────────────────────────────────────────────────


def run(args: argparse.Namespace) -> int:
    """`compress run`."""
    from compressor.commands.run import run_verb

    return run_verb(args, _recipe(args))


def plan(args: argparse.Namespace) -> int:
    """`compress plan`."""
    from compressor.commands.plan import plan_verb

    return plan_verb(args, _recipe(args))


def check(args: argparse.Namespace) -> int:
    """`compress check`."""
    from compressor.commands.check import check_verb

    return check_verb(args)


def sensitivity(args: argparse.Namespace) -> int:
    """`compress sensitivity`."""
    from compressor.commands.sensitivity import sensitivity_verb

    return sensitivity_verb(args, _recipe(args))


def explain(args: argparse.Namespace) -> int:
    """`compress explain`."""
    from compressor.explain import explain as lines_of
    from compressor.record import load_record

    print("\n".join(lines_of(load_record(Path(args.out)))))
    return 0


def compare(args: argparse.Namespace) -> int:
    """`compress compare`."""
    from compressor.commands.compare import compare_verb

    return compare_verb(args)


def report(args: argparse.Namespace) -> int:
    """`compress report`."""
    from compressor.commands.report import report_verb

    return report_verb(args)


def bench(args: argparse.Namespace) -> int:
    """`compress bench`."""
    from compressor.commands.bench import bench_verb

    return bench_verb(args)


def doctor(args: argparse.Namespace) -> int:
    """`compress doctor`."""
    from compressor.commands.doctor import doctor_verb

    return doctor_verb(args)


def targets(args: argparse.Namespace) -> int:
    """`compress targets`."""
    from compressor.commands.doctor import targets_verb

    return targets_verb(args)


def store(args: argparse.Namespace) -> int:
    """`compress store info|gc`."""
    from compressor.store import Store

    kept = Store()
    if args.action == "gc":
        freed = kept.gc(args.max_age_days, args.max_bytes)
        print(f"freed {freed:,} bytes")
    print(f"{kept.root}: {kept.size_bytes():,} bytes")
    return 0


def _recipe(args: argparse.Namespace) -> tuple[Recipe, Path]:
    """The recipe that the command line means, and the folder its paths are relative to."""
    from compressor.flags import recipe_from_flags

    if not args.source:
        raise UsageError("no model or recipe given", fix="compress run recipe.yaml")
    return recipe_from_flags(args)


if __name__ == "__main__":
    entry()
