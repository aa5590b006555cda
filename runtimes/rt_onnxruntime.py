"""ONNX Runtime on the CPU: one sequential session, all optimisations, inputs and outputs bound.

Threads: `intra_op_num_threads=threads`, one inter-op thread. With one thread there is no pool.
With more, ORT's workers spin for a moment after each inference, as they do in a product; that is
left as it is, and a session that stays idle stops spinning by itself.
"""

from __future__ import annotations

import json
import tempfile
from importlib import util
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from runtimes.base import Closing, Feeds, LayerPrecision, Outputs, check_feeds
from runtimes.errors import BadArtifact, MissingTool, UsageError
from runtimes.neighbours import with_neighbours
from runtimes.onnx_nodes import merge_layers, read_nodes
from runtimes.types import Artifact, TensorSpec

_BUNDLES = frozenset({"tensorrt", "tensorrt_rtx"})
FORMATS = frozenset({"onnx", "onnxruntime"}) | _BUNDLES
_PROFILED_RUNS = 5
_DUMPED_BYTES = 500_000_000  # of larger models the executed graph is not written out
_WEIGHTS_APART = "session.optimized_model_external_initializers_file_name"
_HOLDING = ("If", "Loop", "Scan")
_Event = Dict[str, Any]


def missing() -> Optional[str]:
    """Why ONNX Runtime cannot be used here; None where it can."""
    if util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install onnxruntime"
    return None


def versions() -> Dict[str, str]:
    """The engine's version."""
    return {"onnxruntime": str(_engine().__version__)}


def open_session(artifact: Artifact, *, threads: int = 1, device: str = "CPU") -> OrtSession:
    """Load `artifact`; `UsageError` on a device other than CPU, `BadArtifact` on a bad file.

    A TensorRT bundle's model runs pair by pair, as the file says: this CPU's integer kernels would
    round, and some of them saturate, where TensorRT does not. One in BF16, of which this CPU has no
    products, brings the file that stands in for it.
    """
    options = _options(threads)
    if artifact.format in _BUNDLES:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return OrtSession(artifact, _load(artifact, options, device), threads)


class OrtSession(Closing):
    """A loaded model; `settings` is what the engine says it runs with."""

    def __init__(self, artifact: Artifact, engine: Any, threads: int) -> None:
        self._engine = engine
        self.inputs: Tuple[TensorSpec, ...] = artifact.inputs
        self.outputs: Tuple[TensorSpec, ...] = artifact.outputs
        self.settings: Dict[str, str] = {
            "providers": ",".join(engine.get_providers()),
            "intra_op_num_threads": str(threads),
            "graph_optimization_level": "all",
        }
        _check_names(artifact, "input", self.inputs, engine.get_inputs())
        _check_names(artifact, "output", self.outputs, engine.get_outputs())

    def bind(self, feeds: Feeds) -> OrtCall:
        """Check `feeds` and bind them and the outputs to CPU memory."""
        check_feeds(self.inputs, feeds)
        return OrtCall(self._engine, self.outputs, feeds)

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by name for one batch of feeds."""
        call = self.bind(feeds)
        call()
        return call.fetch()

    def close(self) -> None:
        """Free the engine's memory."""
        self._engine = None


class OrtCall:
    """One inference on bound feeds."""

    def __init__(self, engine: Any, outputs: Tuple[TensorSpec, ...], feeds: Feeds) -> None:
        binding = engine.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for spec in outputs:
            binding.bind_output(spec.name, "cpu")
        self._names = [spec.name for spec in outputs]
        self._binding, self._infer = binding, engine.run_with_iobinding

    def __call__(self) -> None:
        """Exactly one synchronous inference."""
        self._infer(self._binding)

    def fetch(self) -> Outputs:
        """Copies of the outputs of the last inference."""
        values = self._binding.copy_outputs_to_cpu()
        return {name: np.array(value) for name, value in zip(self._names, values)}


def layer_precisions(
    artifact: Artifact, *, feeds: Feeds, threads: int = 1, device: str = "CPU"
) -> List[LayerPrecision]:
    """Every executed node and what it computed in, from ORT's own profile of a few runs."""
    with tempfile.TemporaryDirectory() as folder:
        options = _options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        executed = Path(folder) / "executed.onnx"
        if artifact.size_bytes < _DUMPED_BYTES:  # the engine's own graph: who converts for whom
            options.optimized_model_filepath = str(executed)
            options.add_session_config_entry(_WEIGHTS_APART, "weights")  # or they are copied
        engine = _load(artifact, options, device)
        check_feeds(artifact.inputs, feeds)
        for _ in range(_PROFILED_RUNS):
            engine.run(None, dict(feeds))
        events = json.loads(Path(engine.end_profiling()).read_text(encoding="utf-8"))
        nodes = read_nodes(executed) if executed.is_file() else []
    found = [_layer(group, inner) for group, inner in _by_node(events)]
    layers = merge_layers(found, read_nodes(artifact.path))
    if [layer.op for layer in found] != [node.op for node in nodes]:
        return layers
    return with_neighbours(layers, nodes)


def _engine() -> Any:
    reason = missing()
    if reason:
        raise MissingTool(reason, where="onnxruntime", fix="pip install onnxruntime")
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _options(threads: int) -> Any:
    ort = _engine()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return options


def _load(artifact: Artifact, options: Any, device: str) -> Any:
    if device.upper() != "CPU":
        raise UsageError("unknown device", where="onnxruntime", expected="CPU", got=device)
    path = artifact.root / artifact.facts.get("emulated", artifact.entry)
    if not path.is_file():
        raise BadArtifact("file is missing", where=str(path), fix="build it again")
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    failures = (
        state.Fail, state.InvalidProtobuf, state.InvalidGraph, state.NoSuchFile,
        state.NotImplemented, state.InvalidArgument, state.RuntimeException,
    )  # fmt: skip
    try:
        return _engine().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise BadArtifact(f"ONNX Runtime cannot load it: {error}", where=str(path)) from error


def _check_names(
    artifact: Artifact, kind: str, specs: Tuple[TensorSpec, ...], nodes: List[Any]
) -> None:
    have = [node.name for node in nodes]
    want = [spec.name for spec in specs]
    if have != want:
        raise BadArtifact(
            f"the model's {kind}s are not those of its manifest",
            where=str(artifact.path),
            expected=", ".join(want),
            got=", ".join(have),
        )


def _by_node(events: List[Dict[str, Any]]) -> List[Tuple[List[_Event], List[_Event]]]:
    """(events of a node, events inside its loop or branch) of the main graph's executed kernels.

    What runs inside a loop or branch lies within its time, and its node indices are the body's own.
    """
    kernels = [
        event
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    nodes: Dict[int, Tuple[List[_Event], List[_Event]]] = {}
    outer: Optional[_Event] = None
    for event in sorted(kernels, key=lambda event: (event["ts"], -event["dur"])):
        if outer is not None and event["ts"] + event["dur"] <= outer["ts"] + outer["dur"]:
            nodes[int(outer["args"]["node_index"])][1].append(event)
            continue
        nodes.setdefault(int(event["args"]["node_index"]), ([], []))[0].append(event)
        outer = event if event["args"]["op_name"] in _HOLDING else None
    return list(nodes.values())


def _layer(events: List[_Event], inner: List[_Event]) -> LayerPrecision:
    """One node's profile events as a layer; its time is the median over the runs."""
    args = events[0]["args"]
    types = [next(iter(entry)) for entry in args.get("input_type_shape", []) if entry]
    micros = sorted(int(event["dur"]) for event in events)[len(events) // 2]
    name = events[0]["name"][: -len("_kernel_time")]
    op = args["op_name"]
    return LayerPrecision(name, op, _inside(inner) or _precision(op, types), (), micros * 1000)


def _inside(events: List[_Event]) -> str:
    """What the products and convolutions inside a loop or branch run in; empty without any."""
    found = set()
    for event in events:
        op = str(event["args"]["op_name"])
        if any(word in op for word in ("MatMul", "Gemm", "Conv", "LSTM")):
            shapes = event["args"].get("input_type_shape", [])
            found.add(_precision(op, [next(iter(entry)) for entry in shapes if entry]))
    return found.pop() if len(found) == 1 else ("float32" if found else "")


def _precision(op: str, types: List[str]) -> str:
    """What a node computes in: its first input's type, or int8 for kernels that quantize it."""
    if op in ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"):
        return "int8"
    names = {"float": "float32", "double": "float64", "uint8": "int8"}
    first = types[0] if types else "unknown"
    return names.get(first, first)
