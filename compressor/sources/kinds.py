"""What kind of model a file is, told from its content; and what to do with kinds we do not take."""

from __future__ import annotations

import zipfile
from pathlib import Path

from compressor.nearby import closest_file
from runtimes.errors import UsageError

_EXPORT = "torch.onnx.export(model.eval(), (example,), 'model.onnx', dynamo=True)"
_FACTORY = (
    "or name the function that builds it: `model: {source: 'package.module:function', weights: …}`"
)
_FIXES = {
    "a TorchScript archive": "a compiled module cannot be exported or pruned: go back to the "
    f"Python module and {_EXPORT}, {_FACTORY}",
    "a pickled torch module": "reading it would run code from the file: save the weights alone, "
    f"torch.save(model.state_dict(), 'weights.pt'), {_FACTORY}",
    "a torch checkpoint, weights without a model": "name the function that builds the module: "
    "`model: {source: 'package.module:function', weights: <this file>}`",
    "safetensors weights without a model": "name the function that builds the module: "
    "`model: {source: 'package.module:function', weights: <this file>}`",
    "a Keras model": 'convert it: pip install tf2onnx && python -c "import keras, tf2onnx; '
    "tf2onnx.convert.from_keras(keras.models.load_model('<this file>'), "
    "output_path='model.onnx')\"",
    "a TensorFlow Lite model": "convert it: pip install tf2onnx && python -m tf2onnx.convert "
    "--opset 18 --tflite <this file> --output model.onnx",
    "a TensorFlow SavedModel": "convert it: pip install tf2onnx && python -m tf2onnx.convert "
    "--opset 18 --saved-model <this folder> --output model.onnx",
    "an OpenVINO model": "it is already exported for one target: hand in the ONNX file or the "
    "torch model it was made from",
    "a TensorRT engine": "an engine is compiled for one GPU: hand in the ONNX file it is from",
    "an ONNX Runtime (.ort) model": "hand in the .onnx file it was made from",
    "a GGUF file": "language models in GGUF are not supported: hand in ONNX or a torch model",
}
_MAGIC = (
    (0, b"\x89HDF\r\n\x1a\n", "a Keras model"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ORTM", "an ONNX Runtime (.ort) model"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"ptrt", "a TensorRT engine"),
    (0, b"ftrt", "a TensorRT engine"),
    (0, b"\x80\x02", "a pickled torch module"),
)


def kind_of(path: Path) -> str:
    """`"onnx"` or `"exported"`; raises `UsageError` that says what anything else is and its fix."""
    if not path.exists():
        raise missing_file(path, "model")
    found = _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)
    if found in {"onnx", "exported"}:
        return found
    raise UsageError(
        f"this is {found}" if found else "this is not a model we know",
        where=str(path),
        expected="an ONNX file, a .pt2 from torch.export, or a torch factory `module:function`",
        fix=_FIXES.get(found, ""),
    )


def missing_file(path: Path, what: str) -> UsageError:
    """The error for a file that is not there, with the closest name in its folder."""
    close = closest_file(path)
    fix = f"did you mean {close}?" if close else f"check the path of the {what}"
    return UsageError("no such file", where=str(path), fix=fix)


def _kind_of_folder(path: Path) -> str:
    if (path / "saved_model.pb").is_file() or (path / "keras_metadata.pb").is_file():
        return "a TensorFlow SavedModel"
    if any(path.glob("*.xml")) and any(path.glob("*.bin")):
        return "an OpenVINO model"
    return "a folder"


def _kind_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(256)
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    if zipfile.is_zipfile(path):
        return _kind_of_zip(path)
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
        return "safetensors weights without a model"
    if path.suffix == ".xml" and b"<net" in head:
        return "an OpenVINO model"
    return "onnx"  # the parser decides


def _kind_of_zip(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    tails = {name.split("/", 1)[-1] for name in names}
    if "archive_format" in tails or "serialized_exported_program.json" in tails:
        return "exported"
    if "constants.pkl" in tails:
        return "a TorchScript archive"
    if "data.pkl" in tails:
        return _kind_of_checkpoint(path)
    if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
        return "a Keras model"
    return "a zip archive"


def _kind_of_checkpoint(path: Path) -> str:
    # A pickled module names classes outside torch's and collections' in its pickle.
    import pickletools

    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        pickled = archive.read(name)
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name != "GLOBAL":
            continue
        module = str(argument).split(" ")[0]
        if module not in {"collections", "torch._utils", "torch", "torch.storage"}:
            return "a pickled torch module"
    return "a torch checkpoint, weights without a model"
