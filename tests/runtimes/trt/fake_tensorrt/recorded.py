"""What is there of a version: the recorded names, and what both halves of the fake share."""

from __future__ import annotations

import ctypes
import enum
import json
import os
from pathlib import Path

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


def driver():
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return library if library.cuInit(0) == 0 else None


def sm_of(library):
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


class HostMemory:
    """IHostMemory: bytes() through the buffer protocol, as the real one."""

    def __new__(cls, data):
        return memoryview(data)
