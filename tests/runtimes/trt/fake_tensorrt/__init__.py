"""A `tensorrt` of one of the recorded versions: only its names exist, and wrong calls fail.

`names.json` holds the public names of the enums and classes of the real bindings 8.6.1, 10.3.0,
10.16.1.11 and 11.4.0.106 (their wheels, imported over empty libraries). What calls answer follows
the vendor's documentation. "Engines" hold the ONNX file and compute through ONNX Runtime, on the
addresses they are given. Environment: FAKE_TENSORRT version, FAKE_NOISE, FAKE_SLOW_S, FAKE_MEMORY,
FAKE_FLOAT (layers that come out float). Here is what builds; `running.py` has what runs.
"""

from __future__ import annotations

import json
import os
import time

from .recorded import *  # noqa: F403
from .recorded import (
    STRONG,
    VERSION,
    BuilderFlag,
    HostMemory,
    ILogger,
    Logger,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    __version__,
    driver,
    recorded,
    sm_of,
)
from .running import *  # noqa: F403


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
        return HostMemory(self._data)


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
        library = driver()
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
            "sm": sm_of(library),
            "profile": config._profiles[0]._shapes if config._profiles else {},
            "detailed": getattr(config, "profiling_verbosity", None) is not None,
            "flags": sorted(config._flags),
        }
        return HostMemory(json.dumps(head).encode() + b"\n" + network._model.SerializeToString())

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
