"""Real data without a download: Fashion-MNIST and package descriptions from Debian.

Splits are fixed by seed: `training`, `calibration` and `selection` are disjoint parts of the
training data, `evaluation` is the test data and nothing else sees it.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from compressor.modules import import_reference
from examples.zoo.about import Arrays, Roles

EXAMPLE = Path(__file__).parent.parent / "01_image_classifier"
FASHION, FASHION_LICENCE = "Fashion-MNIST (Debian: dataset-fashion-mnist)", "MIT"
DEBIAN, DEBIAN_LICENCE = "one-line descriptions of Debian's packages (apt-cache)", "each package's"
CALIBRATION, SELECTION = 400, 2000


@lru_cache(maxsize=2)
def fashion(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 28, 28] as float32 in 0-1 and labels; `part` is train or t10k."""
    folder = import_reference("fashion_data:find", EXAMPLE)()
    files = [folder / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    unpacked = [gzip.decompress(path.read_bytes()) for path in files]
    pixels = np.frombuffer(unpacked[0], np.uint8, offset=16).reshape(-1, 28, 28)
    classes = np.frombuffer(unpacked[1], np.uint8, offset=8)
    return pixels.astype(np.float32) / 255, classes.astype(np.int64)


def split(
    whole: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray], selection: int = SELECTION
) -> Roles:
    """The four roles, from arrays of the training data and of the test data.

    A test sample whose like is in the training data (texts repeat) is left out.
    """
    n = len(next(iter(whole.values())))
    order = np.random.default_rng(0).permutation(n)
    parts = {
        "calibration": order[:CALIBRATION],
        "selection": order[CALIBRATION : CALIBRATION + selection],
        "training": order[CALIBRATION + selection :],
    }
    roles = {role: {k: v[chosen] for k, v in whole.items()} for role, chosen in parts.items()}
    seen = set(_digests(whole))
    fresh = np.array([digest not in seen for digest in _digests(test)])
    return {**roles, "evaluation": {k: v[fresh] for k, v in test.items()}}


def _digests(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """One digest a sample, of its inputs."""
    inputs = [np.ascontiguousarray(array) for name, array in arrays.items() if name != "labels"]
    for rows in zip(*inputs, strict=True):
        yield hashlib.sha256(b"".join(row.tobytes() for row in rows)).digest()


def fashion_pictures() -> Roles:
    """`image` [n, 1, 28, 28] in 0-1, with labels."""

    def arrays(part: str) -> Arrays:
        images, labels = fashion(part)
        return {"image": images[:, None], "labels": labels}

    return split(arrays("train"), arrays("t10k"))


def fashion_images() -> Roles:
    """`image` [n, 1, 28, 28], standardised, with labels."""

    def arrays(part: str) -> Arrays:
        images, labels = fashion(part)
        return {"image": ((images - 0.286) / 0.353)[:, None], "labels": labels}

    return split(arrays("train"), arrays("t10k"))


def fashion_rows() -> Roles:
    """`rows` [n, 28, 28]: a picture read row by row, with labels."""
    return {
        role: {"rows": a["image"][:, 0], "labels": a["labels"]}
        for role, a in fashion_images().items()
    }


# ── descriptions of Debian packages ──────────────────────────────────────────────────────────────

SECTIONS = (
    "libs", "libdevel", "python", "doc", "perl", "devel", "utils", "haskell", "net", "rust",
    "golang", "javascript", "java", "science", "admin", "ruby", "games", "sound",
)  # fmt: skip
PAD, UNKNOWN = 0, 1
_WORD = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]")


@lru_cache(maxsize=1)
def packages() -> list[tuple[str, str]]:
    """(section, description) of every package apt knows, in the order of their names."""
    dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True)
    found = {}
    for block in dump.stdout.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Section|Description): (.*)$", block, re.M))
        if {"Package", "Section", "Description"} <= set(fields):
            found[fields["Package"]] = (fields["Section"], fields["Description"])
    if len(found) < 10_000:
        raise SystemExit("apt knows no packages; fix: apt-get update")
    return [found[name] for name in sorted(found)]


def words(text: str) -> list[str]:
    """Lower-case words, single digits and signs."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=4)
def vocabulary(size: int) -> dict[str, int]:
    """The most frequent words and their numbers, from 2 on."""
    counts = Counter(word for _, text in packages() for word in words(text))
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: size - 2]
    return {word: i for i, (word, _) in enumerate(common, 2)}


def encode(text: str, vocab: Mapping[str, int], length: int) -> np.ndarray:
    """Word numbers, cut or padded to `length`."""
    found = [vocab.get(word, UNKNOWN) for word in words(text)][:length]
    return np.array(found + [PAD] * (length - len(found)), np.int64)


def described_packages(vocab_size: int, length: int) -> Roles:
    """`tokens` [n, length] (0 pads) with the package's section as label; a tenth is for tests."""
    vocab = vocabulary(vocab_size)
    # Packages share descriptions: one of each, or test data would be in the training data.
    unique = {encode(t, vocab, length).tobytes(): (s, t) for s, t in packages() if s in SECTIONS}
    rows = [(SECTIONS.index(s), encode(t, vocab, length)) for s, t in unique.values()]
    order = np.random.default_rng(1).permutation(len(rows))
    labels = np.array([rows[i][0] for i in order])
    tokens = np.stack([rows[i][1] for i in order])
    cut = len(rows) - 6000
    whole = {"tokens": tokens[:cut], "labels": labels[:cut]}
    return split(whole, {"tokens": tokens[cut:], "labels": labels[cut:]})


def running_text(vocab_size: int, length: int) -> Roles:
    """`tokens` [n, length] of descriptions one after another; labels are the next tokens."""
    vocab = vocabulary(vocab_size)
    order = np.random.default_rng(2).permutation(len(packages()))
    stream = [vocab.get(word, UNKNOWN) for i in order for word in [*words(packages()[i][1]), "."]]
    n = (len(stream) - 1) // length
    tokens = np.array(stream[: n * length], np.int64).reshape(n, length)
    labels = np.array(stream[1 : n * length + 1], np.int64).reshape(n, length)
    cut = n - 1500
    whole = {"tokens": tokens[:cut], "labels": labels[:cut]}
    return split(whole, {"tokens": tokens[cut:], "labels": labels[cut:]})
