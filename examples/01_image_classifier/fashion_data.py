"""Fashion-MNIST as the arrays a recipe asks for: 28x28 grey images of ten kinds of clothing.

Each function returns `{"image": float32 [n, 1, 28, 28] in 0-1, "labels": int64 [n]}`.
The 60,000 published training images are split once, with a fixed seed: 5,000 choose the epoch
(`selection`), 55,000 train. The 10,000 published test images are for the verdict only.

The four files are looked for in $FASHION_MNIST_DIR, where Debian's package
`dataset-fashion-mnist` puts them, and in ~/.cache/fashion-mnist; nothing is ever fetched
unless you run `python fashion_data.py --download`.
Data: Xiao, Rasul and Vollgraf, arXiv 1708.07747 (2017), MIT licence.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import urllib.request
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CACHE = Path.home() / ".cache" / "fashion-mnist"
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Of the uncompressed content: the published files and Debian's differ in their gzip headers.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SELECTION = 5_000
CALIBRATION = 1_000
SEED = 0


def training() -> Arrays:
    """55,000 of the 60,000 training images."""
    return _arrays("train", _split()[SELECTION:])


def calibration() -> Arrays:
    """1,000 of the 55,000 that `training` returns: enough to see each layer's range."""
    return _arrays("train", _split()[SELECTION : SELECTION + CALIBRATION])


def selection() -> Arrays:
    """The 5,000 training images held out to choose by: epochs, options."""
    return _arrays("train", _split()[:SELECTION])


def evaluation() -> Arrays:
    """The 10,000 test images."""
    return _arrays("t10k", slice(None))


def _split() -> np.ndarray:
    return np.random.default_rng(SEED).permutation(60_000)


def _arrays(part: str, chosen: np.ndarray | slice) -> Arrays:
    folder = find()
    images = _read(folder / f"{part}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    labels = _read(folder / f"{part}-labels-idx1-ubyte.gz", header=8)
    image = images[chosen].astype(np.float32)
    image /= 255
    return {"image": image, "labels": labels[chosen].astype(np.int64)}


def _read(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def find() -> Path:
    """The folder that holds the four files; FileNotFoundError says how to get them."""
    named = os.environ.get("FASHION_MNIST_DIR")
    folders = [Path(named)] if named else [DEBIAN, CACHE]
    for folder in folders:
        if all((folder / f"{name}.gz").is_file() for name in SHA256):
            return folder
    raise FileNotFoundError(
        f"Fashion-MNIST is in none of: {', '.join(map(str, folders))}. "
        "fix: apt-get install dataset-fashion-mnist (Debian, Ubuntu), "
        f"or: {Path(sys.executable).name} {Path(__file__)} --download"
    )


def download(folder: Path) -> None:
    """Fetch the four files (31 MB) into `folder`; one with other content is not kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, expected in SHA256.items():
        path = folder / f"{name}.gz"
        if path.is_file():
            continue
        with urllib.request.urlopen(URL + path.name, timeout=60) as answer:
            packed = answer.read()
        if hashlib.sha256(gzip.decompress(packed)).hexdigest() != expected:
            raise ValueError(f"{URL}{path.name}: not the published data (SHA-256 differs)")
        path.write_bytes(packed)


if __name__ == "__main__":
    if sys.argv[1:] == ["--download"]:
        download(Path(os.environ.get("FASHION_MNIST_DIR", CACHE)))
    print(find())
