"""One way to speak to tensorrt 8.6, 10.x, 11.x, their lean runtime and TensorRT-RTX.

What an installed binding can do is asked of its names (`hasattr`), never of its version number.
"""

from __future__ import annotations

import importlib
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .errors import BAD, FAILED, UNSUPPORTED, TrtError

# The package and, where only that is installed, the wheel behind it.
MODULES: Dict[str, Tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_lean": ("tensorrt_lean", "tensorrt_lean_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
# Weakly typed files need these; strongly typed ones carry their types and take none.
_WEAK_FLAGS: Dict[str, Tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("FP16",),
    "bf16": ("BF16",),
    "int8": ("FP16", "INT8"),
    "fp8": ("FP16", "FP8"),
    "int4": ("FP16", "INT8"),
}
Shape = Tuple[int, ...]


def load(name: str) -> Any:
    """The binding behind a back end's name; `TrtError` (exit code 4) with the reason."""
    reasons = []
    for module in MODULES[name]:
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:  # the latter from libraries it loads itself
            reasons.append(str(error))
    raise TrtError(
        f"{name} cannot be imported: {reasons[0]}",
        UNSUPPORTED,
        where="Python binding",
        fix="on a Jetson: apt install python3-libnvinfer; else pip install tensorrt",
    )


class Log:
    """A logger for the binding; keeps what it says of errors and warnings."""

    def __init__(self, trt: Any, say: Optional[Callable[[str], None]] = None) -> None:
        self.errors: List[str] = []
        self.warnings: List[str] = []
        keep = {trt.Logger.INTERNAL_ERROR: self.errors, trt.Logger.ERROR: self.errors}
        keep[trt.Logger.WARNING] = self.warnings

        class Listener(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in keep:
                    keep[severity].append(message)
                    if say is not None:
                        say(message)

        self.listener = Listener()

    def last(self) -> str:
        """The errors that came last, which name the cause."""
        return "\n  ".join(self.errors[-3:]) or "it gave no reason"


def network_flags(trt: Any) -> int:
    """Strongly typed where the binding knows that, explicit batch where that has to be said."""
    flags = trt.NetworkDefinitionCreationFlag
    name = "STRONGLY_TYPED" if hasattr(flags, "STRONGLY_TYPED") else "EXPLICIT_BATCH"
    return 1 << int(getattr(flags, name))


def precision_flags(trt: Any, precision: str) -> List[str]:
    """Builder flags of a precision, where types are not in the file and such flags exist."""
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return []
    return [name for name in _WEAK_FLAGS[precision] if hasattr(trt.BuilderFlag, name)]


def parse(trt: Any, network: Any, log: Log, model: str) -> None:
    """Fill `network` from an ONNX file; `TrtError` (exit code 5) with every error's node."""
    parser = trt.OnnxParser(network, log.listener)
    if parser.parse_from_file(model):
        return
    found = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
    shown = found[:8] + ([f"… and {len(found) - 8} more"] if len(found) > 8 else [])
    raise TrtError(
        "the ONNX parser refuses it:\n  " + "\n  ".join(shown or [log.last()]),
        FAILED,
        where=model,
        fix="compress check names each node and what to change",
    )


def _parser_error(error: Any) -> str:
    name = str(error.node_name()) if hasattr(error, "node_name") else ""
    kind = str(error.node_operator()) if hasattr(error, "node_operator") else ""
    words = [part for part in (name, f"({kind})" if kind else "") if part]
    where = " ".join(words) or f"node {error.node()}"
    return f"{where}: {error.desc()}"


def configure(trt: Any, config: Any, builder: Any, options: Mapping[str, Any]) -> List[str]:
    """Set a bundle's builder options; sentences on those that this binding does not have."""
    notes: List[str] = []
    workspace = options.get("workspace_bytes")
    if workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace))
    if options.get("optimization_level") is not None:
        if hasattr(config, "builder_optimization_level"):
            config.builder_optimization_level = int(options["optimization_level"])
        else:
            notes.append("this TensorRT has no optimization levels")
    if options.get("detailed", True):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.get("hardware_compatible"):
        _needs(trt, "HardwareCompatibilityLevel", trt)
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    wanted = {"version_compatible": "VERSION_COMPATIBLE", "sparsity": "SPARSE_WEIGHTS"}
    for option, name in wanted.items():
        if options.get(option):
            set_flag(trt, config, name)
    if options.get("dla_core") is not None:
        notes += _dla(trt, config, builder, int(options["dla_core"]))
    return notes


def set_flag(trt: Any, config: Any, name: str) -> None:
    """Set a builder flag; `TrtError` (exit code 4) where the binding has none of that name."""
    _needs(trt, name, trt.BuilderFlag)
    config.set_flag(getattr(trt.BuilderFlag, name))


def _needs(trt: Any, name: str, holder: Any) -> None:
    if not hasattr(holder, name):
        raise TrtError(f"it has no {name}", UNSUPPORTED, where=f"TensorRT {trt.__version__}")


def _dla(trt: Any, config: Any, builder: Any, core: int) -> List[str]:
    cores = int(getattr(builder, "num_DLA_cores", 0))
    if core >= cores:
        raise TrtError(
            "no such DLA core",
            UNSUPPORTED,
            expected=f"one of {cores} that this board and TensorRT have",
            got=str(core),
            fix="leave --dla away; it is experimental",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    set_flag(trt, config, "GPU_FALLBACK")
    return ["DLA is experimental: layers that it does not take run on the GPU"]


def add_profile(
    network: Any, config: Any, builder: Any, specs: Sequence[Mapping[str, Any]]
) -> None:
    """One optimisation profile from `min`, `opt` and `max` of the bundle's inputs."""
    by_name = {spec["name"]: spec for spec in specs}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    free = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    values = [tensor.name for tensor in inputs if getattr(tensor, "is_shape_tensor", False)]
    if values:
        raise TrtError(
            "the values of an input decide shapes, which a profile of a bundle cannot bound",
            FAILED,
            where="input " + values[0],
            fix="make that input a constant of the model",
        )
    if not free:
        return
    profile = builder.create_optimization_profile()
    for tensor in free:
        spec = by_name.get(tensor.name, {})
        if not all(spec.get(key) for key in ("min", "opt", "max")):
            raise TrtError(
                "free dimensions without a profile",
                FAILED,
                where="input " + tensor.name,
                expected="min, opt and max in trt.json",
                fix="give the target its shapes, such as {shape: {image: 1..8@4}}, and run again",
            )
        shapes = [tuple(spec[key]) for key in ("min", "opt", "max")]
        profile.set_shape(tensor.name, *shapes)
    if int(config.add_optimization_profile(profile)) < 0:
        raise TrtError("the optimisation profile is refused", FAILED, where=free[0].name)


def watch_progress(trt: Any, config: Any, say: Callable[[str], None]) -> Any:
    """Tell the phases of a build, where the binding offers them (10.x and later)."""
    if not hasattr(trt, "IProgressMonitor") or not hasattr(config, "progress_monitor"):
        say("building; this TensorRT tells no progress")
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: Dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: Any, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            if not parent_phase:
                say(f"{phase_name}: {num_steps} steps")

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self.steps.get(phase_name, 0)
            if total >= 10 and (step + 1) % (total // 5) == 0:
                say(f"{phase_name}: {step + 1} of {total}")
            return True  # False would end the build

    config.progress_monitor = monitor = Monitor()
    return monitor


def profiler(trt: Any) -> Any:
    """A profiler for an execution context; `total_ms` sums what it is told per layer."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.total_ms: Dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.total_ms[layer_name] = self.total_ms.get(layer_name, 0.0) + ms

    return Profiler()


class Tensor(NamedTuple):
    """An input or output of an engine; free dimensions are -1; `on_host`: read by the CPU."""

    name: str
    is_input: bool
    dtype: str
    shape: Shape
    on_host: bool


def deserialize(trt: Any, plan: bytes, log: Log, compatible: bool = False) -> Tuple[Any, Any]:
    """(runtime, engine) of a plan; `TrtError` (exit code 7) where this library refuses it.

    A version-`compatible` plan carries its runtime, which is code that runs on the host.
    """
    runtime = trt.Runtime(log.listener)
    if compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise TrtError(
            "the engine cannot be loaded: " + log.last(),
            BAD,
            fix="build it again on this board: python build_engine.py --rebuild",
        )
    return runtime, engine


def tensors(trt: Any, engine: Any) -> List[Tensor]:
    """Inputs and outputs of an engine, in its own order."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [
        Tensor(
            name,
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            dtype_name(engine.get_tensor_dtype(name)),
            tuple(engine.get_tensor_shape(name)),
            engine.get_tensor_location(name) == trt.TensorLocation.HOST,
        )
        for name in names
    ]


_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool", "UINT8": "uint8",
}  # fmt: skip


def dtype_name(kind: Any) -> str:
    """The numpy name of a TensorRT type; `TrtError` where numpy has none (BF16, FP8, …)."""
    name = str(kind).rsplit(".", 1)[-1]
    if name not in _DTYPES:
        raise TrtError(
            f"numpy has no type for {name}", FAILED, fix="give the model float inputs and outputs"
        )
    return str(np.dtype(_DTYPES[name]))


def activation_bytes(engine: Any) -> int:
    """Device memory that one execution context of the engine needs."""
    for name in ("device_memory_size_v2", "device_memory_size"):
        if hasattr(engine, name):
            return int(getattr(engine, name))
    return 0


def inspector_json(trt: Any, engine: Any) -> str:
    """Everything the engine says of its layers, as JSON text."""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
