"""The README's first screen, from the records of the runs that it shows.

    make demo && cp out/demo/run.json benchmarks/example_01/demo.json
    compress run examples/01_image_classifier/recipe.yaml --effort quick --target onnxruntime \
        --gate 'size_reduction>=97%' -o out/tight
    cp out/tight/run.json benchmarks/example_01/tight.json
    python benchmarks/example_01/readme.py

The second run reuses the first one's steps. A test holds README and records together.
"""

from __future__ import annotations

import re
from pathlib import Path

from compressor.record import load_record
from compressor.report import terminal

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TIGHT = (
    "compress run examples/01_image_classifier/recipe.yaml --effort quick --target onnxruntime "
    "--gate 'size_reduction>=97%' -o out/tight"
)


def indented(lines: list[str]) -> str:
    return "\n".join(f"    {line}" if line else "" for line in lines)


def demo() -> str:
    """What `make demo` printed."""
    return indented(terminal(load_record(HERE / "demo.json")))


def tight() -> str:
    """What the same run printed with a gate that nothing passes."""
    return indented([f"$ {TIGHT}", *terminal(load_record(HERE / "tight.json"))])


def between(text: str, mark: str, content: str) -> str:
    """`text` with what stands between the two marks replaced."""
    pattern = rf"(<!-- {mark}[^>]*-->\n).*?(\n<!-- /{mark} -->)"
    return re.sub(pattern, lambda m: m[1] + content + m[2], text, flags=re.S)


def main() -> None:
    then = (
        "Tighten a gate and it fails in less than half a minute: finished steps are reused, and "
        "nothing is timed that has failed before:"
    )
    block = f"{demo()}\n\n{then}\n\n{tight()}"
    for path, mark, content in (
        (ROOT / "README.md", "DEMO OUTPUT", block),
        (ROOT / "examples" / "01_image_classifier" / "README.md", "EXPECTED OUTPUT", demo()),
    ):
        path.write_text(between(path.read_text(), mark, content))


if __name__ == "__main__":
    main()
