"""The CUDA driver through ctypes: memory, streams, events, graphs, facts about the device.

Of CUDA's two interfaces this is the driver's (`libcuda.so.1`): it comes with every driver, and its
symbols are the same from CUDA 11.4 (JetPack 5) to 13. TensorRT works on the device's primary
context, and so does this; streams and addresses are the same in both.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import numpy as np

from .errors import FAILED, UNSUPPORTED, TrtError

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR, _PROCESSORS, _INTEGRATED = 75, 76, 16, 18  # CUdevice_attribute
_OUT_OF_MEMORY, _NO_DEVICE = 2, 100
_CAPTURE_THIS_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_NON_BLOCKING = 1

# Function → argument types; every one returns a CUresult.
SIGNATURES: Dict[str, Tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (c_void_p,),
    "cuGetErrorName": (c_int, c_void_p),
    "cuGetErrorString": (c_int, c_void_p),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceTotalMem_v2": (c_void_p, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (c_void_p, c_void_p),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_ulonglong,),
    "cuMemAllocHost_v2": (c_void_p, c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_ulonglong, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_ulonglong, c_size_t, c_void_p),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, c_void_p),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (c_void_p, c_void_p, c_void_p),
    "cuGraphInstantiateWithFlags": (c_void_p, c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
}


class Device(NamedTuple):
    """One GPU. `sm` is its compute capability × 10: 87 is an Orin; `integrated`: shared memory."""

    ordinal: int
    name: str
    sm: int
    memory_bytes: int
    processors: int
    integrated: bool


class Driver:
    """The loaded driver library; `TrtError` (exit code 4) where there is none, or no GPU."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise _unavailable(f"no NVIDIA driver: {error}") from error
        for name, arguments in SIGNATURES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise _unavailable(f"the NVIDIA driver is too old: it has no {name}") from error
            function.argtypes, function.restype = arguments, c_int
        code = self._library.cuInit(0)
        if code:
            raise _unavailable(f"the NVIDIA driver does not start: {self._name(code)}")

    def call(self, name: str, *arguments: Any) -> None:
        """One function of the driver; `TrtError` with the driver's own words where it fails."""
        code = getattr(self._library, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise TrtError(
                "too little memory on the GPU",
                FAILED,
                where=name,
                fix="end other programs, or lower the batch or the workspace",
            )
        if code:
            raise TrtError(f"the GPU reports {self._name(code)}", FAILED, where=name)

    def cuda_version(self) -> str:
        """The CUDA version that the driver supports, such as `12.6`."""
        value = c_int()
        self.call("cuDriverGetVersion", byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def devices(self) -> List[Device]:
        """All GPUs; `TrtError` (exit code 4) where there are none."""
        count = c_int()
        code = self._library.cuDeviceGetCount(byref(count))
        if code not in (0, _NO_DEVICE) or not count.value:
            raise _unavailable(f"no NVIDIA GPU: {self._name(code) if code else 'none is visible'}")
        return [self._device(index) for index in range(count.value)]

    def _device(self, index: int) -> Device:
        handle, total, name = c_int(), c_size_t(), ctypes.create_string_buffer(256)
        self.call("cuDeviceGet", byref(handle), index)
        self.call("cuDeviceGetName", name, len(name), handle)
        self.call("cuDeviceTotalMem_v2", byref(total), handle)

        def attribute(key: int) -> int:
            value = c_int()
            self.call("cuDeviceGetAttribute", byref(value), key, handle)
            return value.value

        return Device(
            index,
            name.value.decode("utf-8", "replace"),
            10 * attribute(_MAJOR) + attribute(_MINOR),
            total.value,
            attribute(_PROCESSORS),
            bool(attribute(_INTEGRATED)),
        )

    def _name(self, code: int) -> str:
        name, text = c_char_p(), c_char_p()
        self._library.cuGetErrorName(code, byref(name))
        self._library.cuGetErrorString(code, byref(text))
        words = [value.value.decode() for value in (name, text) if value.value]
        return ": ".join(words) or f"error {code}"


def _unavailable(what: str) -> TrtError:
    return TrtError(what, UNSUPPORTED, fix="run on a machine with an NVIDIA GPU and its driver")


class Cuda:
    """The primary context of one GPU, current in this thread until `close`."""

    def __init__(self, index: int = 0) -> None:
        self.driver = Driver()
        found = self.driver.devices()
        if index >= len(found):
            raise _unavailable(f"no GPU {index}: there are {len(found)}")
        self.device = found[index]
        context = c_void_p()
        self.driver.call("cuDevicePrimaryCtxRetain", byref(context), index)
        self.driver.call("cuCtxSetCurrent", context)

    def memory(self) -> Tuple[int, int]:
        """(free, total) bytes of the GPU's memory, which on a Jetson is the system's."""
        free, total = c_size_t(), c_size_t()
        self.driver.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def scope(self) -> Scope:
        """What is made through it lives until it is closed."""
        return Scope(self.driver)

    def upload(self, address: int, array: np.ndarray[Any, Any], stream: int) -> None:
        """Copy a contiguous array to the GPU, in the stream's order."""
        self.driver.call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: np.ndarray[Any, Any], address: int, stream: int) -> None:
        """Copy memory of the GPU into a contiguous array, in the stream's order."""
        self.driver.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)

    def record(self, event: int, stream: int) -> None:
        """Let `event` happen when the stream has come so far."""
        self.driver.call("cuEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Time between two events that have happened."""
        value = c_float()
        self.driver.call("cuEventElapsedTime", byref(value), start, end)
        return value.value

    def synchronize(self, stream: int) -> None:
        """Wait until the stream has nothing left to do."""
        self.driver.call("cuStreamSynchronize", stream)

    def close(self) -> None:
        """Give the context back; its scopes must be closed before."""
        self.driver.call("cuDevicePrimaryCtxRelease_v2", self.device.ordinal)


class Scope:
    """Memory, streams, events and graphs that are freed together, the last made first."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._undo: List[Tuple[str, Any]] = []

    def allocate(self, size_bytes: int) -> int:
        """The address of new memory on the GPU."""
        address = c_ulonglong()
        self._driver.call("cuMemAlloc_v2", byref(address), max(1, size_bytes))
        self._undo.append(("cuMemFree_v2", address.value))
        return address.value

    def pinned(self, shape: Tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """A zeroed array in host memory that the GPU copies from and to directly."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        address = c_void_p()
        self._driver.call("cuMemAllocHost_v2", byref(address), max(1, size))
        self._undo.append(("cuMemFreeHost", address.value))
        buffer = (ctypes.c_byte * max(1, size)).from_address(address.value or 0)
        held = np.frombuffer(buffer, np.uint8)[:size]
        held[...] = 0
        made: np.ndarray[Any, Any] = held.view(dtype).reshape(shape)
        return made

    def stream(self) -> int:
        """A new stream."""
        return self._handle("cuStreamCreate", "cuStreamDestroy_v2", _NON_BLOCKING)

    def event(self) -> int:
        """A new event that keeps time."""
        return self._handle("cuEventCreate", "cuEventDestroy_v2", 0)

    def capture(self, stream: int, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` puts into `stream`, as a CUDA graph: a call that launches it there."""
        self._driver.call("cuStreamBeginCapture_v2", stream, _CAPTURE_THIS_THREAD)
        graph, launched = c_void_p(), c_void_p()
        try:
            work()
        finally:  # a stream left capturing would refuse everything else
            self._driver.call("cuStreamEndCapture", stream, byref(graph))
        self._undo.append(("cuGraphDestroy", graph.value))
        self._driver.call("cuGraphInstantiateWithFlags", byref(launched), graph, 0)
        self._undo.append(("cuGraphExecDestroy", launched.value))
        return lambda: self._driver.call("cuGraphLaunch", launched, stream)

    def close(self) -> None:
        """Free it all; arrays of `pinned` must not be touched any more."""
        while self._undo:
            name, argument = self._undo.pop()
            self._driver.call(name, argument)

    def _handle(self, make: str, drop: str, flags: int) -> int:
        handle = c_void_p()
        self._driver.call(make, byref(handle), flags)
        self._undo.append((drop, handle.value))
        return handle.value or 0
