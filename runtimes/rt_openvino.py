"""OpenVINO: one stream, the latency hint, `threads` threads, everything else at its default.

The inference precision stays at the device's default, because that is what a product gets; it is
recorded in `settings`. On a CPU with bfloat16 units that default is bf16, for FP32 models too. An
artifact whose facts say `execution: f32` (the FP32 twin) runs in FP32.
OpenVINO would report home at import; `runtimes/__init__.py` keeps its telemetry package out.
"""

from __future__ import annotations

import re
from importlib import util
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from runtimes.base import Closing, Feeds, LayerPrecision, Outputs, check_feeds
from runtimes.errors import BadArtifact, MissingTool, RuntimeUnavailable, UsageError
from runtimes.neighbours import with_neighbours
from runtimes.onnx_nodes import Node, add_folded, read_nodes
from runtimes.types import Artifact, TensorSpec

FORMATS = frozenset({"openvino", "onnx"})
_PROFILED_RUNS = 5
_SETTINGS = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT")
_PRECISIONS = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "int8", "i8": "int8",
    "u4": "int4", "i4": "int4", "i32": "int32", "i64": "int64", "boolean": "bool",
}  # fmt: skip
# 2026.4 on CPUs with AMX: convolutions whose activations have a zero point fail beside bf16
_NO_KERNEL_FIX = (
    "quantize activations symmetrically (zero point 0), or set INFERENCE_PRECISION_HINT=f32"
)
_NOT_LAYERS = frozenset({"Input", "Output", "Const"})
_ADDED = re.compile(r"(/WithoutBiases|/fq_(in|out)put_\d+|/Dequantization[A-Za-z]+|_original)+$")

_MADE_UP = re.compile(r"(Multiply|Convolution|GroupConvolution|Constant|Convert|Subtract)_\d+")


def missing() -> Optional[str]:
    """Why OpenVINO cannot be used here; None where it can."""
    if util.find_spec("openvino") is None:
        return "openvino is not installed: pip install edge-compressor[openvino]"
    return None


def versions() -> Dict[str, str]:
    """The engine's version, with its build."""
    return {"openvino": str(_engine().__version__)}


def devices() -> List[str]:
    """Devices of this machine that OpenVINO can use."""
    return [str(name) for name in _engine().Core().available_devices]


def open_session(artifact: Artifact, *, threads: int = 1, device: str = "CPU") -> OvSession:
    """Read and compile `artifact` (IR or ONNX) for `device`; raises `BadArtifact` on a bad file."""
    return OvSession(artifact, _compile(artifact, threads, device, {}))


class OvSession(Closing):
    """A compiled model; `settings` is what the engine says it runs with."""

    def __init__(self, artifact: Artifact, compiled: Any) -> None:
        self._compiled = compiled
        self.inputs: Tuple[TensorSpec, ...] = artifact.inputs
        self.outputs: Tuple[TensorSpec, ...] = artifact.outputs
        self._ports_in = _ports(artifact, "input", self.inputs, compiled.inputs)
        self._ports_out = _ports(artifact, "output", self.outputs, compiled.outputs)
        self.settings: Dict[str, str] = _settings(compiled)

    def bind(self, feeds: Feeds) -> OvCall:
        """Check `feeds` and set them as the tensors of a request of their own."""
        check_feeds(self.inputs, feeds)
        return OvCall(self._compiled.create_infer_request(), self._ports_in, self._ports_out, feeds)

    def run(self, feeds: Feeds) -> Outputs:
        """Outputs by name for one batch of feeds."""
        call = self.bind(feeds)
        call()
        return call.fetch()

    def close(self) -> None:
        """Free the engine's memory."""
        self._compiled = None
        self._ports_in = self._ports_out = {}


class OvCall:
    """One inference on bound feeds."""

    def __init__(
        self, request: Any, ports_in: Dict[str, Any], ports_out: Dict[str, Any], feeds: Feeds
    ) -> None:
        ov = _engine()
        self._request, self._ports_out = request, ports_out
        for name, array in feeds.items():
            try:
                request.set_tensor(ports_in[name], ov.Tensor(np.array(array, order="C")))
            except RuntimeError as error:
                raise UsageError(
                    "the model was not built for inputs of this shape",
                    where=name,
                    expected=str(ports_in[name].partial_shape),
                    got=str(list(array.shape)),
                    fix="widen --shape, or give data within it",
                ) from error

    def __call__(self) -> None:
        """Exactly one synchronous inference; outputs stay in the engine's memory."""
        self._request.infer(share_outputs=True)

    def profile(self) -> List[Tuple[str, int]]:
        """Executed nodes of the last inference with their times in ns; needs `PERF_COUNT`."""
        return [
            (info.node_name, round(info.real_time.total_seconds() * 1e9))
            for info in self._request.profiling_info
        ]

    def fetch(self) -> Outputs:
        """Copies of the outputs of the last inference."""
        ports = self._ports_out.items()
        return {name: np.array(self._request.get_tensor(port).data) for name, port in ports}


def layer_precisions(
    artifact: Artifact, *, feeds: Feeds, threads: int = 1, device: str = "CPU"
) -> List[LayerPrecision]:
    """Every executed layer with its precision and median time, by OpenVINO's runtime model."""
    compiled = _compile(artifact, threads, device, {"PERF_COUNT": True})
    session = OvSession(artifact, compiled)
    call = session.bind(feeds)
    times: Dict[str, List[int]] = {}
    for _ in range(_PROFILED_RUNS):
        call()
        for name, took in call.profile():
            times.setdefault(name, []).append(took)
    nodes = compiled.get_runtime_model().get_ordered_ops()
    source = read_nodes(artifact.path)
    renamed = _output_nodes(artifact, source)
    layers = [
        _layer(node.get_friendly_name(), _facts(node), renamed, times.get(node.get_friendly_name()))
        for node in nodes
    ]
    layers = with_neighbours(layers, [_executed(node) for node in nodes])
    return add_folded([layer for layer in layers if layer.op not in _NOT_LAYERS], source)


def _output_nodes(artifact: Artifact, source: List[Node]) -> Dict[str, str]:
    """Output tensor → source node: OpenVINO names the last node of a model after its output."""
    made = {out: n.name for n in source for out in n.outputs if n.name}
    made.update(artifact.facts.get("output_nodes", {}))
    return {name: made[name] for name in (spec.name for spec in artifact.outputs) if name in made}


def _engine() -> Any:
    reason = missing()
    if reason:
        raise MissingTool(reason, where="openvino", fix="pip install edge-compressor[openvino]")
    import openvino

    return openvino


def _compile(artifact: Artifact, threads: int, device: str, more: Dict[str, Any]) -> Any:
    core = _engine().Core()
    family = device.split(".")[0].upper()
    if family not in [name.split(".")[0] for name in devices()]:
        raise RuntimeUnavailable(
            "OpenVINO has no such device here",
            where=device,
            expected="one of " + ", ".join(devices()),
        )
    if not artifact.path.is_file():
        raise BadArtifact("file is missing", where=str(artifact.path), fix="build it again")
    config: Dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", **more}
    if artifact.facts.get("execution") == "f32":
        config["INFERENCE_PRECISION_HINT"] = "f32"
    if family == "CPU":
        config.update(INFERENCE_NUM_THREADS=threads, NUM_STREAMS="1")
    try:
        return core.compile_model(core.read_model(str(artifact.path)), device, config)
    except RuntimeError as error:
        raise BadArtifact(
            f"OpenVINO cannot compile it: {_last_line(error)}",
            where=str(artifact.path),
            fix=_NO_KERNEL_FIX if "No suitable implementations" in str(error) else "",
        ) from error


def _ports(
    artifact: Artifact, kind: str, specs: Tuple[TensorSpec, ...], ports: List[Any]
) -> Dict[str, Any]:
    """Our name → the engine's port, which may know itself by several names."""
    found = {spec.name: port for spec in specs for port in ports if spec.name in port.get_names()}
    if len(found) != len(specs) or len(ports) != len(specs):
        raise BadArtifact(
            f"the model's {kind}s are not those of its manifest",
            where=str(artifact.path),
            expected=", ".join(spec.name for spec in specs),
            got=", ".join("/".join(sorted(port.get_names())) for port in ports),
        )
    return found


def _settings(compiled: Any) -> Dict[str, str]:
    known = set(compiled.get_property("SUPPORTED_PROPERTIES"))
    found = {name: _plain(compiled.get_property(name)) for name in _SETTINGS if name in known}
    found["EXECUTION_DEVICES"] = ",".join(compiled.get_property("EXECUTION_DEVICES"))
    return found


def _plain(value: Any) -> str:
    """`<Type: 'bfloat16'>` and `PerformanceMode.LATENCY` as a person writes them."""
    name = getattr(value, "name", None)
    if isinstance(name, str):
        return name
    return str(value.get_type_name() if hasattr(value, "get_type_name") else value)


def _facts(node: Any) -> Dict[str, str]:
    info = node.get_rt_info()
    return {key: str(getattr(info[key], "value", info[key])) for key in info}


def _executed(node: Any) -> Node:
    """A node of the runtime model with its edges."""
    name = node.get_friendly_name()
    reads = [value.get_node().get_friendly_name() for value in node.input_values()]
    return Node(name, node.get_type_name(), tuple(reads), (name,))


def _layer(
    name: str, facts: Dict[str, str], renamed: Dict[str, str], times: Optional[List[int]] = None
) -> LayerPrecision:
    sources = [_source_name(part) for part in facts.get("originalLayersNames", "").split(",")]
    named = [renamed.get(part, part) for part in sources if part and not _MADE_UP.match(part)]
    layers = tuple(dict.fromkeys(named))
    micros = facts.get("execTimeMcs", "")
    precision = facts.get("runtimePrecision", "unknown")
    return LayerPrecision(
        layers[0] if layers else _source_name(name),
        facts.get("layerType", "unknown"),
        _PRECISIONS.get(precision, precision),
        layers,
        _median(times) if times and micros.isdigit() else None,
    )


def _median(times: List[int]) -> int:
    """The middle one: a mean of few runs is that of whatever else the machine did."""
    return sorted(times)[len(times) // 2]


def _source_name(name: str) -> str:
    """The source node's name without what OpenVINO's frontend and passes and NNCF append."""
    return _ADDED.sub("", name.strip())


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
