"""Flags that several verbs share, and how their values are read; argparse and nothing heavier."""

from __future__ import annotations

import argparse


def model_flags(parser: argparse.ArgumentParser) -> None:
    """The model or recipe, and everything that can be said of it on the command line."""
    add = parser.add_argument
    add("source", metavar="RECIPE|MODEL", help="a recipe (.yaml), model.onnx, or model.pt2")
    add("--target", action="append", default=[], metavar="T", help="onnxruntime, openvino, …")
    add("--calibration", metavar="DATA", help=".npz, folder, or module:function: sets scales")
    add("--evaluation", metavar="DATA", help="labelled data the verdict is made on")
    add("--training", metavar="DATA", help="data for recovery after pruning")
    add("--selection", metavar="DATA", help="data to choose by; never evaluation data")
    add(
        "--metric",
        help="top1, top5, f1, mae, rmse, auc, miou, …, module:function, or {name: top1, output: y}",
    )
    add("--evaluator", metavar="M:F", help="module:function called with run(feeds) -> outputs")
    add("--max-drop", type=share, metavar="X", help="largest drop, in the metric's units (0.01)")
    add("--max-relative-drop", type=share, metavar="X", help="largest relative drop (0.01 or 1%%)")
    add("--gate", action="append", default=[], metavar="G", help="speedup@1>=2, size<=3MB, …")
    add("--keep-float", action="append", default=[], metavar="GLOB", help="layers left float")
    text = "recurrent state of a model that takes one step a call; repeatable"
    add("--state", action="append", default=[], metavar="IN=OUT", help=text)
    add("--shape", action="append", default=[], metavar="INPUT=R", help="image=1, image=1..8@4")
    add("--device", help="the engine's device, for every target named")
    add("--seed", type=int, help="seed of every random choice")
    add("--minutes", type=float, metavar="M", help="end after about M minutes, best so far")
    add("--batch", type=count, action="append", metavar="N", help="batch size to time; repeatable")
    add("--threads", type=count, metavar="N", help="engine threads while timing")


def data_flags(parser: argparse.ArgumentParser) -> None:
    """The model or recipe with its data, for verbs that judge and time nothing."""
    add = parser.add_argument
    add("source", metavar="RECIPE|MODEL", help="a recipe (.yaml), model.onnx, or model.pt2")
    add("--target", action="append", default=[], metavar="T", help="onnxruntime, openvino, …")
    add("--calibration", metavar="DATA", help=".npz, folder, or module:function: sets scales")
    add("--selection", metavar="DATA", help="data to measure on; default: calibration data")
    add("--keep-float", action="append", default=[], metavar="GLOB", help="layers left float")
    text = "recurrent state of a model that takes one step a call; repeatable"
    add("--state", action="append", default=[], metavar="IN=OUT", help=text)
    add("--shape", action="append", default=[], metavar="INPUT=R", help="image=1, image=1..8@4")
    add("--device", help="the engine's device, for every target named")
    add("--seed", type=int, help="seed of every random choice")
    unset = dict.fromkeys(("evaluation", "training", "metric", "evaluator"))
    limits = dict.fromkeys(("max_drop", "max_relative_drop", "batch", "threads"))
    parser.set_defaults(gate=[], **unset, **limits)


def effort_flag(parser: argparse.ArgumentParser, default: str | None) -> None:
    """`--effort`, whose default is the recipe's where `default` is None."""
    text = "how long to time (default: the recipe's)" if default is None else "how long to time"
    choices = ("quick", "default", "certify")
    parser.add_argument("--effort", choices=choices, default=default, help=text)


def share(text: str) -> float:
    """`0.01` or `1%`."""
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def count(text: str) -> int:
    """A whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number
