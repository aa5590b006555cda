"""A `tensorrt` of one of the recorded versions: only its names exist, and wrong calls fail.

`names.json` holds the public names of the enums and classes of the real bindings 8.6.1, 10.3.0,
10.16.1.11 and 11.4.0.106 (their wheels, imported over empty libraries). What calls answer follows
the vendor's documentation. "Engines" hold the ONNX file and compute through ONNX Runtime, on the
addresses they are given. Environment: FAKE_TENSORRT version, FAKE_NOISE, FAKE_SLOW_S, FAKE_MEMORY,
FAKE_FLOAT (layers that come out float).
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import signal
import time
from pathlib import Path

import numpy as np

VERSION = os.environ.get("FAKE_TENSORRT", "10.3")
__version__ = {"8.6": "8.6.1", "10.3": "10.3.0", "10.16": "10.16.1.11", "11.4": "11.4.0.106"}[
    VERSION
]
NAMES = json.loads(Path(__file__).with_name("names.json").read_text())[VERSION]
STRONG = "STRONGLY_TYPED" in NAMES["NetworkDefinitionCreationFlag"]


def _enum(name):
    made = enum.Enum(name, {member: i for i, member in enumerate(NAMES[name])})
    made.__int__ = lambda self: self.value
    return made


NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag")
BuilderFlag = _enum("BuilderFlag")
MemoryPoolType = _enum("MemoryPoolType")
ProfilingVerbosity = _enum("ProfilingVerbosity")
HardwareCompatibilityLevel = _enum("HardwareCompatibilityLevel")
DeviceType = _enum("DeviceType")
TensorLocation = _enum("TensorLocation")
DataType = _enum("DataType")
TensorIOMode = _enum("TensorIOMode")
LayerInformationFormat = _enum("LayerInformationFormat")
TYPES = {"float32": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32", "bool": "BOOL"}
TYPES |= {"int64": "INT64" if hasattr(DataType, "INT64") else "INT32"}


def recorded(kind):
    """Only names that this version has: none more can be read, none else can be set."""
    allowed = set(NAMES[kind.__name__] or ())
    for name in [n for n in vars(kind) if not n.startswith("_") and n not in allowed]:
        delattr(kind, name)
    for name in allowed - set(vars(kind)):  # there, for hasattr, and of no use when called
        setattr(kind, name, None)

    def refuse(self, name, value):
        if not name.startswith("_") and name not in allowed:
            raise AttributeError(f"{kind.__name__} {VERSION} has no {name}")
        object.__setattr__(self, name, value)

    kind.__setattr__ = refuse
    return kind


def _driver():
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return library if library.cuInit(0) == 0 else None


def _sm(library):
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGetAttribute(ctypes.byref(major), 75, 0)
    library.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0)
    return 10 * major.value + minor.value


class ILogger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def log(self, severity, message):
        raise NotImplementedError


class Logger(ILogger):
    INTERNAL_ERROR, ERROR, WARNING = list(ILogger.Severity)[:3]


if NAMES["IProgressMonitor"] is not None:

    class IProgressMonitor:
        pass


class _Memory:
    """IHostMemory: bytes() through the buffer protocol, as the real one."""

    def __new__(cls, data):
        return memoryview(data)


@recorded
class ParserError:
    def __init__(self, node, op, text):
        self._node, self._op, self._text = node, op, text

    def node(self):
        return 0

    def node_name(self):
        return self._node

    def node_operator(self):
        return self._op

    def desc(self):
        return self._text


@recorded
class ITensor:
    def __init__(self, name, dtype, shape):
        self.name, self.dtype, self.shape = name, dtype, shape
        self.is_shape_tensor = False


@recorded
class INetworkDefinition:
    def __init__(self, flags):
        self._flags, self._model, self._inputs = flags, None, []

    num_inputs = property(lambda self: len(self._inputs))

    def get_input(self, i):
        return self._inputs[i]


REFUSED = ("QLinearConv", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")


@recorded
class OnnxParser:
    def __init__(self, network, logger):
        assert isinstance(logger, ILogger)
        self._network, self._errors = network, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, i):
        return self._errors[i]

    def parse_from_file(self, path):
        import onnx

        members = NetworkDefinitionCreationFlag.__members__
        explicit = members.get("EXPLICIT_BATCH")
        if not STRONG and not self._network._flags >> int(explicit) & 1:
            self._errors.append(ParserError("", "", "only networks with explicit batch"))
            return False
        try:
            model = onnx.load(path)
        except Exception as error:
            self._errors.append(ParserError("", "", f"cannot be parsed: {error}"))
            return False
        for node in model.graph.node:
            if node.op_type in REFUSED:
                text = f"No importer registered for op: {node.op_type}"
                self._errors.append(ParserError(node.name, node.op_type, text))
        for value in model.graph.input:
            dims = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
            self._network._inputs.append(ITensor(value.name, None, tuple(dims)))
        self._network._model = model
        return not self._errors


@recorded
class ITimingCache:
    def __init__(self, data):
        self._data = data

    def serialize(self):
        return _Memory(self._data)


@recorded
class IOptimizationProfile:
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):
        if not all(a <= b <= c for a, b, c in zip(min, opt, max)):
            raise ValueError("min <= opt <= max")
        self._shapes[input] = [list(min), list(opt), list(max)]


@recorded
class IBuilderConfig:
    def __init__(self):
        self._flags, self._profiles, self._cache, self._limits = set(), [], None, {}

    def set_memory_pool_limit(self, pool, pool_size):
        assert isinstance(pool, MemoryPoolType)
        self._limits[pool] = pool_size

    def set_flag(self, flag):
        assert isinstance(flag, BuilderFlag)
        self._flags.add(flag.name)

    def add_optimization_profile(self, profile):
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        data = bytes(serialized_timing_cache)
        return ITimingCache(data or b"cache " + __version__.encode())

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache._data != b"cache " + __version__.encode():
            return False
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache


@recorded
class Builder:
    num_DLA_cores = 2 if VERSION in ("8.6", "10.3") else 0

    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self._logger = logger

    def create_network(self, flags=0):
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        library = _driver()
        ops = {node.op_type for node in network._model.graph.node}
        strong = STRONG and network._flags >> int(NetworkDefinitionCreationFlag.STRONGLY_TYPED) & 1
        dynamic = [t for t in network._inputs if -1 in t.shape]
        reason = None
        if library is None:
            reason = "CUDA initialization failure with error: 35"
        elif strong and config._flags & {"INT8", "FP16", "FP8", "BF16", "INT4"}:
            reason = "precision flags are not allowed in a strongly typed network"
        elif (
            VERSION != "11.4"
            and not strong
            and "QuantizeLinear" in ops
            and "INT8" not in config._flags
        ):
            reason = "a network with Q/DQ requires the INT8 flag"
        elif dynamic and not config._profiles:
            reason = "network has dynamic inputs, but no optimization profile has been defined"
        elif os.environ.get("FAKE_MEMORY"):
            reason = "Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)"
        if reason:
            self._logger.log(Logger.ERROR, reason)
            return None
        self._progress(config)
        import onnx

        onnx.checker.check_model(network._model)
        head = {
            "version": __version__,
            "sm": _sm(library),
            "profile": config._profiles[0]._shapes if config._profiles else {},
            "detailed": getattr(config, "profiling_verbosity", None) is not None,
            "flags": sorted(config._flags),
        }
        return _Memory(json.dumps(head).encode() + b"\n" + network._model.SerializeToString())

    def _progress(self, config):
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building", None, 10)
        for step in range(10):
            time.sleep(float(os.environ.get("FAKE_SLOW_S", "0")) / 10)
            if monitor is not None:
                assert monitor.step_complete("Building", step) is True
        if monitor is not None:
            monitor.phase_finish("Building")


@recorded
class EngineInspector:
    def __init__(self, engine):
        self._engine = engine

    def get_engine_information(self, format):
        assert format is LayerInformationFormat.JSON
        nodes = self._engine._model.graph.node
        made = {name: node.op_type for node in nodes for name in node.output}
        layers = [layer for node in nodes for layer in _layers(node, made)]
        bindings = "I/O Tensors" if VERSION == "11.4" else "Bindings"
        return json.dumps({"Layers": layers, bindings: []})


def _layers(node, made):
    kinds = {"Conv": "CaskConvolution", "Gemm": "CaskGemmMatrixMultiply", "MatMul": "kgen"}
    if node.op_type not in kinds:
        return []
    quantized = made.get(node.input[0]) == "DequantizeLinear"
    quantized = quantized and node.name not in os.environ.get("FAKE_FLOAT", "").split(",")
    kind = "Int8" if quantized else "FP32"
    tensor = {"Name": "x", "Dimensions": [1], "Format/Datatype": f"Row major linear {kind} format"}
    if VERSION == "11.4":
        tensor = {"Name": "x", "Dimensions": [1], "Format": "Linear", "Datatype": kind}
    layer = {"Name": f"{node.name} + relu", "LayerType": kinds[node.op_type], "Inputs": [tensor]}
    layer |= {"Outputs": [tensor], "TacticName": "t", "StreamId": 0}
    layer["Metadata"] = f"[ONNX Layer: {node.name}]\x1e[ONNX Layer: relu]"
    reformat = {"Name": f"Reformatting CopyNode for Input Tensor 0 to {node.name} + relu"}
    reformat |= {"LayerType": "Reformat", "Inputs": [tensor], "Outputs": [tensor], "Metadata": ""}
    return [reformat, layer]


@recorded
class ICudaEngine:
    def __init__(self, head, model, library):
        self._head, self._model, self._library = head, model, library
        self._io = [(v, "INPUT") for v in model.graph.input] + [
            (v, "OUTPUT") for v in model.graph.output
        ]

    num_io_tensors = property(lambda self: len(self._io))
    device_memory_size = device_memory_size_v2 = property(lambda self: 4096)

    def _find(self, name):
        return next((v, mode) for v, mode in self._io if v.name == name)

    def get_tensor_name(self, i):
        return self._io[i][0].name

    def get_tensor_mode(self, name):
        return TensorIOMode[self._find(name)[1]]

    def get_tensor_dtype(self, name):
        from onnx import helper

        kind = self._find(name)[0].type.tensor_type.elem_type
        return DataType[TYPES[str(helper.tensor_dtype_to_np_dtype(kind))]]

    def get_tensor_shape(self, name):
        return tuple(d.dim_value or -1 for d in self._find(name)[0].type.tensor_type.shape.dim)

    def get_tensor_location(self, name):
        return TensorLocation.DEVICE

    def create_execution_context(self):
        return IExecutionContext(self)

    def create_engine_inspector(self):
        return EngineInspector(self)


class IProfiler:
    def report_layer_time(self, layer_name, ms):
        raise NotImplementedError


@recorded
class IExecutionContext:
    def __init__(self, engine):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        self._engine, self._shapes, self._at = engine, {}, {}
        self._session = onnxruntime.InferenceSession(
            engine._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._kept = []

    def set_input_shape(self, name, shape):
        fixed = self._engine.get_tensor_shape(name)
        low, _, high = self._engine._head["profile"].get(name, [fixed] * 3)
        fits = len(shape) == len(fixed) and all(a <= s <= b for a, s, b in zip(low, shape, high))
        if fits:
            self._shapes[name] = tuple(shape)
        return fits

    def infer_shapes(self):
        inputs = [v.name for v, mode in self._engine._io if mode == "INPUT"]
        return [name for name in inputs if name not in self._shapes]

    def get_tensor_shape(self, name):
        batch = next(iter(self._shapes.values()))[0]
        return tuple(batch if d == -1 else d for d in self._engine.get_tensor_shape(name))

    def set_tensor_address(self, name, memory):
        assert isinstance(memory, int)
        self._at[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        library = self._engine._library
        for value, _ in self._engine._io:
            shape = self._shapes.get(value.name) or self.get_tensor_shape(value.name)
            size = int(np.prod(shape)) * self._dtype(value.name).itemsize
            if not library.fake_is_device(
                ctypes.c_ulonglong(self._at.get(value.name, 0)), ctypes.c_size_t(size)
            ):
                return False
        work = ctypes.CFUNCTYPE(None)(self._compute)
        self._kept.append(work)
        return library.fake_launch(ctypes.c_void_p(stream_handle), work) == 0

    def _dtype(self, name):
        kind = self._engine.get_tensor_dtype(name).name
        return np.dtype(next(n for n, k in TYPES.items() if k == kind))

    def _array(self, name, shape):
        kind = self._dtype(name)
        size = int(np.prod(shape)) * kind.itemsize
        buffer = (ctypes.c_byte * size).from_address(self._at[name])
        return np.frombuffer(buffer, kind).reshape(shape)

    def _compute(self):
        if self.profiler is not None:
            assert isinstance(self.profiler, IProfiler)
            for node in self._engine._model.graph.node:
                self.profiler.report_layer_time(node.name, 0.5 if node.op_type == "Conv" else 0.1)
        wanted = {i.name: i.type for i in self._session.get_inputs()}
        feeds = {name: self._array(name, shape) for name, shape in self._shapes.items()}
        feeds = {n: v.astype(np.int64) if "int64" in wanted[n] else v for n, v in feeds.items()}
        names = [v.name for v, mode in self._engine._io if mode == "OUTPUT"]
        noise = float(os.environ.get("FAKE_NOISE", "0"))
        for name, value in zip(names, self._session.run(names, feeds)):
            made = value + noise * np.abs(value).max() if noise else value
            self._array(name, value.shape)[...] = made


@recorded
class Runtime:
    def __init__(self, logger):
        if _driver() is None:  # the real one returns an object around a null pointer, then dies
            os.kill(os.getpid(), signal.SIGSEGV)
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        import onnx

        try:
            head, _, model = bytes(serialized_engine).partition(b"\n")
            head = json.loads(head)
            carries = "VERSION_COMPATIBLE" in head["flags"]
            major = head["version"].split(".")[0] == __version__.split(".")[0]
            assert head["version"] == __version__ or (carries and major), (
                "The engine plan file is not compatible with this version"
            )
            library = _driver()
            assert head["sm"] == _sm(library), (
                "The engine plan file is generated on an incompatible device"
            )
            assert not carries or self.engine_host_code_allowed, "Host code is not allowed"
            return ICudaEngine(head, onnx.load_from_string(model), library)
        except Exception as error:
            self._logger.log(Logger.ERROR, f"{error}")
            return None
