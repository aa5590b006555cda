"""`compress check`."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.schema import to_json
from runtimes.errors import UsageError
from runtimes.types import Artifact

REFUSED = "refused"
SAID = frozenset({REFUSED, "mended", "warning", "note"})  # rows that say what is wrong with a node
NOTHING_TO_DO = "nothing to do"  # how coverage ends the reason of a node that follows others


def check_verb(args: argparse.Namespace) -> int:
    """`compress check`: per node, what a target refuses or leaves in float, and what to change."""
    import tempfile

    from compressor.env import Silent
    from compressor.opening import open_model, source_spec
    from compressor.recipe import parse_recipe
    from compressor.store import Store

    if args.source.endswith((".yaml", ".yml")):
        raise UsageError(
            "check takes a model, and this is a recipe",
            where=args.source,
            fix=f"compress plan {args.source} --deep",
        )
    recipe = parse_recipe({"model": {"source": str(Path(args.source).absolute())}}, "command line")
    if not args.target:
        raise UsageError("no target named", where="--target", fix="add --target openvino")
    worst, found = 0, {}
    with tempfile.TemporaryDirectory(prefix="compress-check-") as folder:
        spec = source_spec(recipe, Path.cwd())
        source, _, _ = open_model(spec, Store(Path(folder)), Silent())
        if source.format != "onnx":
            raise UsageError(
                "check reads ONNX files",
                where=args.source,
                got=f"{'an' if source.format[0] in 'aeiou' else 'a'} {source.format} model",
                fix="name an ONNX file; of other models `compress explain` tells after a run",
            )
        for name in args.target:
            found[name], refused = _checked(source, name, tuple(args.keep_float), args.shape)
            worst = max(worst, 4 if refused else 0)
    if args.json:
        print(json.dumps(to_json(found), indent=1))
        return worst
    for name, rows in found.items():
        _print_checked(name, rows, args.all)
    return worst


def _checked(
    source: Artifact, name: str, keep: tuple[str, ...], shape: Sequence[str]
) -> tuple[list[dict[str, str]], bool]:
    from compressor.flags import shape_flags
    from compressor.quantization.coverage import coverage
    from compressor.shapes import resolve_shapes
    from compressor.steps import load_step, load_target
    from exporters.base import Context, Keep

    target = load_target(name, "--target")
    module: Any = load_step("to_" + name)
    if source.format not in module.ACCEPTS:  # it takes what the first step of its list makes
        module = load_step(target.ladder[0].steps[0].name)
    shapes = resolve_shapes(shape_flags(shape), source.inputs, "--shape")
    context = Context(target=name, scheme=target.scheme, keep=Keep(float=keep), shapes=shapes)
    if _not_float(source, context) and hasattr(module, "check_quantized"):
        rows = module.check_quantized(source, context)
        return rows, any(row["precision"] == REFUSED for row in rows)
    refusals = module.refusals(source, module.Options(), context)
    refusals = refusals or _not_float(source, context)
    rows = [
        {"layer": r.where, "op": "", "precision": REFUSED, "reason": r.why, "fix": r.fix}
        for r in refusals
    ]
    if target.scheme is not None and not refusals:
        rows += [
            {
                "layer": row.layer,
                "op": row.op,
                "precision": row.requested,
                "reason": row.reason,
                "fix": getattr(row, "fix", ""),
            }
            for row in coverage(source, target.scheme, context.keep)
        ]
    return rows, bool(refusals)


def _not_float(source: Artifact, context: Any) -> list[Any]:
    """What INT8 quantization refuses the whole model for: it is quantized already."""
    from compressor.steps import load_step

    step: Any = load_step("quantize_static")
    found = step.refusals(source, step.Options(), context)
    return [refusal for refusal in found if "already" in refusal.why]


def _print_checked(name: str, rows: list[dict[str, str]], everything: bool) -> None:
    integer = [r for r in rows if r["precision"] == "int8"]
    rest = [r for r in rows if r["precision"] != "int8"]
    refused = [r for r in rest if r["precision"] == REFUSED]
    nodes = len([r for r in rows if r["precision"] not in SAID])
    taken = f"{name} takes every node" + (f"; {len(integer)} of {nodes} in INT8" if nodes else "")
    print(f"{name} cannot compress this model:" if refused else taken)
    following = [] if everything else [r for r in rest if NOTHING_TO_DO in r["reason"]]
    for row in rows if everything else (r for r in rest if r not in following):
        where = f"{row['layer']} ({row['op']})" if row["op"] else row["layer"]
        print(f"  {row['precision']:9} {where}: {row['reason']}".rstrip(": "))
        if row["fix"]:
            print(f"            fix: {row['fix']}")
    if following:
        names = ", ".join(row["layer"] for row in following)
        text = f"{len(following)} more nodes without weights stay beside them (--all says why): "
        lines = textwrap.wrap(text + names, 88, initial_indent="  float32   ")
        print("\n            ".join(lines))
