"""Engines of the stand-in for TensorRT: read, inspected, run."""

from __future__ import annotations

import ctypes
import json
import os
import signal

import numpy as np

from .recorded import (
    TYPES,
    VERSION,
    DataType,
    LayerInformationFormat,
    Logger,
    TensorIOMode,
    TensorLocation,
    __version__,
    driver,
    recorded,
    sm_of,
)


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
        if driver() is None:  # the real one returns an object around a null pointer, then dies
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
            library = driver()
            assert head["sm"] == sm_of(library), (
                "The engine plan file is generated on an incompatible device"
            )
            assert not carries or self.engine_host_code_allowed, "Host code is not allowed"
            return ICudaEngine(head, onnx.load_from_string(model), library)
        except Exception as error:
            self._logger.log(Logger.ERROR, f"{error}")
            return None
