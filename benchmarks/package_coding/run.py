"""What coders make of compressed models, and deltas between a model and its retrained version.

    python benchmarks/package_coding/run.py --artifacts demo=out/demo/onnxruntime --deltas d=OLD:NEW
    python benchmarks/package_coding/run.py --table          # table.md again from results.json

Bytes of an artifact's model files (what `coded_size` counts) by gzip, bzip2 and xz as they are;
with weights taken out and grouped (4-bit ones a symbol a byte, or as bit planes; floats by byte)
before xz or a Huffman code; and by the coding of packages. Deltas: the new files given the old
ones, beside xz on the differences of aligned weights. Everything is decoded again and compared.
Writes results.json and table.md beside this file, merged by name.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from compressor.package.coding import code_files  # noqa: E402
from compressor.package.segments import Stored, find_weights  # noqa: E402
from runtimes.blob import decode  # noqa: E402
from runtimes.coding import HALF, INT4, INT8, UINT4, UINT8, WORD  # noqa: E402
from runtimes.types import Artifact  # noqa: E402

RESULTS = HERE / "results.json"
Array = Any


def xz(data: bytes) -> int:
    """Bytes of a bare LZMA stream, its literals coded without context."""
    options = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "pb": 0}
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=[options]))


def huffman(data: bytes) -> int:
    """Bytes of deflate without matches: Huffman codes alone."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return len(coder.compress(data) + coder.flush())


def symbols(data: bytes, kind: int) -> Array:
    """Weights with one symbol a byte (4 bits), or byte by byte grouped by significance."""
    raw = np.frombuffer(data, np.uint8)
    if kind in (INT4, UINT4):
        return np.stack([raw & 15, raw >> 4], axis=1).ravel()
    width = {WORD: 4, HALF: 2}.get(kind, 1)
    return raw.reshape(-1, width).T.ravel()


def bit_planes(data: bytes, kind: int) -> bytes:
    """Weights as bit planes, the same bit of all of them together."""
    found = symbols(data, kind)
    bits = 4 if kind in (INT4, UINT4) else 8
    return b"".join(np.packbits((found >> b) & 1).tobytes() for b in reversed(range(bits)))


def entropy(found: Array) -> float:
    """Bytes of symbols by their own frequencies."""
    shares = np.bincount(found) / max(len(found), 1)
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum() * len(found) / 8)


def files_of(artifact: Artifact) -> list[str]:
    return [artifact.entry, *sorted(set(artifact.files) - {artifact.entry})]


def joined(root: Path, files: list[str]) -> bytes:
    return b"".join((root / name).read_bytes() for name in files)


def parts(root: Path, files: list[str]) -> tuple[list[tuple[Stored, bytes]], bytes]:
    """Weights with their bytes, and all other bytes."""
    found, rest = [], b""
    for name in files:
        data, at = (root / name).read_bytes(), 0
        for tensor in (t for t in find_weights(root, files) if t.file == name):
            rest += data[at : tensor.offset]
            at = tensor.offset + tensor.size
            found.append((tensor, data[tensor.offset : at]))
        rest += data[at:]
    return found, rest


def of_artifact(root: Path) -> dict[str, Any]:
    """Bytes of an artifact by every coder, and the seconds of ours."""
    files = files_of(Artifact.load(root))
    data = joined(root, files)
    found, rest = parts(root, files)
    kinds = sorted({tensor.kind for tensor, _ in found})
    streams = {k: b"".join(d for t, d in found if t.kind == k) for k in kinds}
    spread = {k: symbols(stream, k).tobytes() for k, stream in streams.items()}
    began = time.perf_counter()
    blob = code_files(root, files)
    coded = time.perf_counter()
    assert bytes(decode(blob, len(data))) == data
    ended = time.perf_counter()
    small = xz(rest)
    weights4 = b"".join(s for k, s in streams.items() if k in (INT4, UINT4))
    return {
        "raw": len(data),
        "gzip": len(gzip.compress(data, 9)),
        "bzip2": len(bz2.compress(data, 9)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        "grouped, xz": small + sum(xz(stream) for stream in streams.values()),
        "symbols, xz": small + sum(xz(stream) for stream in spread.values()),
        "symbols, huffman": small + sum(huffman(stream) for stream in spread.values()),
        "bit planes, xz": small + sum(xz(bit_planes(s, k)) for k, s in streams.items()),
        "package": len(blob),
        "int4_bytes": len(weights4),
        "int4_entropy": round(entropy(symbols(weights4, INT4))),
        "encode_s": round(coded - began, 2),
        "decode_s": round(ended - coded, 2),
    }


def of_delta(old: Path, new: Path) -> dict[str, Any]:
    """Bytes of `new` alone and given `old`, by the coding of packages and by xz."""
    orders = [files_of(Artifact.load(root)) for root in (old, new)]
    data, base = joined(new, orders[1]), joined(old, orders[0])
    full = code_files(new, orders[1])
    began = time.perf_counter()
    delta = code_files(new, orders[1], old, orders[0])
    ended = time.perf_counter()
    assert bytes(decode(delta, len(data), base)) == data
    found, rest = parts(new, orders[1])
    before = {(t.name, t.kind, t.size): d for t, d in parts(old, orders[0])[0]}
    plain, moved, same, total = b"", b"", 0, 0
    for tensor, body in found:
        now = symbols(body, tensor.kind)
        then = before.get((tensor.name, tensor.kind, tensor.size))
        if then is None:
            plain += now.tobytes()
            continue
        step = now - symbols(then, tensor.kind)
        narrow = tensor.kind in (INT4, UINT4)
        moved += (step & 15 if narrow else step).tobytes()
        if tensor.kind in (INT4, UINT4, INT8, UINT8):
            same, total = same + int((step == 0).sum()), total + len(step)
    return {
        "raw": len(data),
        "full": len(full),
        "delta": len(delta),
        "share": round(len(delta) / len(full), 4),
        "differences, xz": xz(rest) + xz(plain) + xz(moved),
        "same_weights": round(same / max(total, 1), 4),
        "unaligned_bytes": len(plain),
        "encode_s": round(ended - began, 2),
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    coders = ["gzip", "bzip2", "xz", "grouped, xz", "symbols, xz", "symbols, huffman",
              "bit planes, xz", "package"]  # fmt: skip
    lines = ["| model files, bytes | raw | " + " | ".join(coders) + " | of gzip | of xz |"]
    lines.append("|---" * (len(coders) + 4) + "|")
    for name, row in results["artifacts"].items():
        cells = [f"{row[key]:,}" for key in ["raw", *coders]]
        shares = [f"{row['package'] / row[key] - 1:+.1%}" for key in ("gzip", "xz")]
        lines.append("| " + " | ".join([name, *cells, *shares]) + " |")
    lines += [
        "",
        "| delta, bytes | weights that stayed | xz on differences | full | delta | share |",
    ]
    lines.append("|---" * 6 + "|")
    for name, row in results["deltas"].items():
        cells = [f"{row['same_weights']:.1%}"]
        cells += [f"{row[key]:,}" for key in ("differences, xz", "full", "delta")]
        lines.append("| " + " | ".join([name, *cells, f"{row['share']:.1%}"]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    text = "NAME=FOLDER of an artifact; repeatable"
    parser.add_argument("--artifacts", nargs="*", default=[], metavar="A", help=text)
    text = "NAME=OLD:NEW, two folders"
    parser.add_argument("--deltas", nargs="*", default=[], metavar="D", help=text)
    parser.add_argument("--table", action="store_true", help="only write table.md again")
    flags = parser.parse_args()
    results: dict[str, Any] = {"artifacts": {}, "deltas": {}}
    if RESULTS.exists():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    for given in flags.artifacts:
        name, folder = given.split("=", 1)
        results["artifacts"][name] = of_artifact(Path(folder))
        keep(results)
    for given in flags.deltas:
        name, pair = given.split("=", 1)
        old, new = pair.split(":")
        results["deltas"][name] = of_delta(Path(old), Path(new))
        keep(results)
    keep(results)


def keep(results: dict[str, Any]) -> None:
    """Write what is there so far."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (HERE / "table.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
