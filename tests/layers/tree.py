"""The source tree, as the tests in this folder look at it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("compressor", "exporters", "runtimes")

# Distributions' import names that no module may import when it is itself imported.
HEAVY = frozenset(
    """torch onnx onnxruntime openvino nncf tensorrt tensorrt_rtx hls4ml da4ml scipy sklearn
    pydantic jinja2 rich yaml torch_pruning onnxslim onnxscript onnx_ir safetensors PIL pycocotools
    jiwer optuna ml_dtypes jsonschema""".split()  # noqa: SIM905 - a list of 26 quoted words reads worse
)
# Of these, what every installation has: a plan may use it, `--help` may not.
CORE = frozenset({"onnx", "onnxruntime", "pydantic", "rich", "yaml", "jinja2", "ml_dtypes"})


def sources(*packages: str) -> list[Path]:
    """The Python files of our packages, sorted."""
    return sorted(p for name in packages or PACKAGES for p in (ROOT / name).rglob("*.py"))


def modules() -> list[str]:
    """Dotted names of all our modules."""
    names = (path.relative_to(ROOT).with_suffix("").parts for path in sources())
    return [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names]


@cache
def parsed(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def short(path: Path) -> str:
    """A test id: the path inside the repository."""
    return path.relative_to(ROOT).as_posix()


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Full dotted names that the import statements among `nodes` name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: functions and type checking left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import(node)
