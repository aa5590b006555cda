"""One peer's defaults on one model; run as a process of its own, in the peer's own environment.

    python peers.py PEER MODEL.onnx FEEDS.npz OUT

`FEEDS.npz` holds the calibration samples, one batch of one each, as `<number>/<input>`. The peer
writes its model into OUT; the last line on stdout is its versions as JSON. Standard library and
numpy, and the peer's own packages: this file runs where our package is not installed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Feeds = list[dict[str, np.ndarray]]
Peer = Callable[[Path, Feeds, Path], None]


def read_feeds(path: Path) -> Feeds:
    """The samples in order."""
    with np.load(path) as arrays:
        made: dict[int, dict[str, np.ndarray]] = {}
        for key in arrays.files:
            number, _, name = key.partition("/")
            made.setdefault(int(number), {})[name] = arrays[key]
    return [made[number] for number in sorted(made)]


def _quiet_nncf() -> Any:
    import nncf

    nncf.set_log_level(40)
    return nncf


def nncf_onnx(model: Path, feeds: Feeds, out: Path) -> None:
    """`nncf.quantize` on the ONNX model."""
    import onnx

    nncf = _quiet_nncf()
    made = nncf.quantize(onnx.load(model), nncf.Dataset(feeds))
    onnx.save(made, out / "model.onnx")


def nncf_openvino(model: Path, feeds: Feeds, out: Path) -> None:
    """`nncf.quantize` on the OpenVINO model, saved as OpenVINO does by default."""
    import openvino

    nncf = _quiet_nncf()
    made = nncf.quantize(openvino.Core().read_model(model), nncf.Dataset(feeds))
    openvino.save_model(made, out / "model.xml")


def nncf_weights(model: Path, feeds: Feeds, out: Path) -> None:
    """`nncf.compress_weights` on the OpenVINO model."""
    import openvino

    del feeds
    made = _quiet_nncf().compress_weights(openvino.Core().read_model(model))
    openvino.save_model(made, out / "model.xml")


def _reader(feeds: Feeds) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[dict[str, np.ndarray]] = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

        def rewind(self) -> None:
            self.rest = iter(feeds)

    return Reader()


def _prepared(model: Path, folder: str) -> str:
    """The model after `quant_pre_process`, as ONNX Runtime advises; else as it is."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    made = Path(folder) / "prepared.onnx"
    try:
        quant_pre_process(str(model), str(made))
    except Exception as error:  # noqa: BLE001 - whatever its shape inference raises
        print(f"not prepared: {error}", file=sys.stderr)
        return str(model)
    return str(made)


def ort_static(model: Path, feeds: Feeds, out: Path) -> None:
    """`quant_pre_process`, then `quantize_static`."""
    from onnxruntime.quantization import quantize_static

    with tempfile.TemporaryDirectory() as folder:
        quantize_static(_prepared(model, folder), str(out / "model.onnx"), _reader(feeds))


def ort_dynamic(model: Path, feeds: Feeds, out: Path) -> None:
    """`quant_pre_process`, then `quantize_dynamic`."""
    from onnxruntime.quantization import quantize_dynamic

    del feeds
    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(_prepared(model, folder), str(out / "model.onnx"))


def modelopt(model: Path, feeds: Feeds, out: Path) -> None:
    """ModelOpt's ONNX quantization in INT8, calibrated on the CPU."""
    from modelopt.onnx.quantization import quantize

    arrays = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data=arrays,
        calibration_eps=["cpu"],
        output_path=str(out / "model.onnx"),
    )


_OLIVE_DATA = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from olive.data.registry import Registry
from peers import read_feeds

@Registry.register_dataset()
def given(**_):
    return [(feed, 0) for feed in read_feeds(Path({feeds!r}))]

@Registry.register_dataloader()
def one_by_one(dataset, **_):
    return dataset
"""


def olive(model: Path, feeds: Feeds, out: Path) -> None:
    """Olive's `OnnxStaticQuantization` pass with its defaults."""
    from olive.workflows import run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = {f"{i}/{k}": v for i, feed in enumerate(feeds) for k, v in feed.items()}
        np.savez(folder / "feeds.npz", **arrays)  # type: ignore[arg-type]
        here = str(Path(__file__).resolve().parent)
        script = folder / "given_data.py"
        script.write_text(_OLIVE_DATA.format(here=here, feeds=str(folder / "feeds.npz")))
        run(
            {
                "input_model": {"type": "ONNXModel", "model_path": str(model)},
                "data_configs": [
                    {
                        "name": "calibration",
                        "user_script": str(script),
                        "load_dataset_config": {"type": "given"},
                        "dataloader_config": {"type": "one_by_one"},
                    }
                ],
                "passes": {"q": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
                "systems": {
                    "here": {
                        "type": "LocalSystem",
                        "accelerators": [
                            {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
                        ],
                    }
                },
                "target": "here",
                "cache_dir": str(folder / "cache"),
                "output_dir": str(folder / "made"),
            }
        )
        found = sorted((folder / "made").rglob("*.onnx"))
        if not found:
            raise RuntimeError("Olive ended without a model")
        for path in found[0].parent.iterdir():
            if path.suffix in (".onnx", ".data"):
                shutil.copy(path, out / path.name)


# name → (function, packages, engines its output is run on, environment of its own)
PEERS: dict[str, tuple[Peer, tuple[str, ...], tuple[str, ...], str | None]] = {
    "nncf-onnx": (nncf_onnx, ("nncf", "onnx"), ("onnxruntime", "openvino"), None),
    "nncf-openvino": (nncf_openvino, ("nncf", "openvino"), ("openvino",), None),
    "nncf-weights": (nncf_weights, ("nncf", "openvino"), ("openvino",), None),
    "ort-static": (ort_static, ("onnxruntime", "onnx"), ("onnxruntime", "openvino"), None),
    "ort-dynamic": (ort_dynamic, ("onnxruntime", "onnx"), ("onnxruntime", "openvino"), None),
    "modelopt": (modelopt, ("nvidia-modelopt", "onnx"), ("onnxruntime", "openvino"), "modelopt"),
    "olive": (olive, ("olive-ai", "onnx"), ("onnxruntime", "openvino"), "olive"),
}


def main() -> None:
    peer, model, feeds, out = sys.argv[1:]
    run, packages, _, own = PEERS[peer]
    if own is None:  # keeps the telemetry of OpenVINO and NNCF out
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        import runtimes  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:  # some tools write beside their input
        copy = Path(folder) / "given"
        shutil.copytree(Path(model).parent, copy)
        run(copy / Path(model).name, read_feeds(Path(feeds)), Path(out))
    print(json.dumps({name: version(name) for name in packages}))


if __name__ == "__main__":
    main()
