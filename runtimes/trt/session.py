"""An engine with memory of its own: shapes bound, inputs up, one inference, outputs down."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np

from . import api
from .cuda import Cuda
from .errors import BAD, FAILED, TrtError

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


class Engine:
    """A deserialized plan on one GPU."""

    def __init__(self, trt: Any, cuda: Cuda, plan: bytes, compatible: bool = False) -> None:
        self.trt, self.cuda, self.log = trt, cuda, api.Log(trt)
        self._runtime, self.engine = api.deserialize(trt, plan, self.log, compatible)
        self.tensors = api.tensors(trt, self.engine)
        self._scope = cuda.scope()
        self.stream = self._scope.stream()

    def bind(self, feeds: Arrays) -> Bound:
        """Memory and an execution context for feeds of these shapes."""
        return Bound(self, feeds)

    def run(self, feeds: Arrays) -> Dict[str, np.ndarray[Any, Any]]:
        """Outputs by name for one batch of feeds."""
        bound = self.bind(feeds)
        try:
            bound()
            return bound.fetch()
        finally:
            bound.close()

    def profile(self, feeds: Arrays, repeats: int = 10) -> List[Tuple[str, float]]:
        """(layer, mean ms) by the engine's profiler, which slows it down: no latency."""
        bound = self.bind(feeds)
        try:
            return bound.profile(repeats)
        finally:
            bound.close()

    def close(self) -> None:
        """Free the engine; what was bound must be closed before."""
        self._scope.close()
        self.engine = self._runtime = None


class Bound:
    """Feeds in pinned memory, buffers on the GPU, a context that knows both."""

    def __init__(self, engine: Engine, feeds: Arrays) -> None:
        self._engine, self._cuda, self._stream = engine, engine.cuda, engine.stream
        self._context = engine.engine.create_execution_context()
        if self._context is None:
            raise TrtError(
                "too little memory for an execution context: " + engine.log.last(), FAILED
            )
        self._inputs: List[Tuple[np.ndarray[Any, Any], int]] = []
        self._outputs: Dict[str, Tuple[np.ndarray[Any, Any], int]] = {}
        self._launch: Optional[Callable[[], None]] = None
        self._scope = engine.cuda.scope()
        try:
            self._prepare(feeds)
        except TrtError:
            self._scope.close()
            raise

    def _prepare(self, feeds: Arrays) -> None:
        engine = self._engine
        for tensor in engine.tensors:
            if tensor.is_input:
                self._bind_input(tensor, feeds)
        self._infer_shapes()
        for tensor in engine.tensors:
            if not tensor.is_input:
                self._bind_output(tensor)

    def __call__(self) -> None:
        """One inference, transfers included; returns when it is done."""
        self.upload()
        self.enqueue()
        self.download()
        self._cuda.synchronize(self._stream)

    def upload(self) -> None:
        """Copy the inputs to the GPU, in the stream's order."""
        for array, address in self._inputs:
            if address:
                self._cuda.upload(address, array, self._stream)

    def enqueue(self) -> None:
        """Put one inference into the stream: the network itself, or its CUDA graph."""
        if self._launch is not None:
            self._launch()
        elif not self._context.execute_async_v3(self._stream):
            raise TrtError("the engine does not run: " + self._engine.log.last(), FAILED)

    def download(self) -> None:
        """Copy the outputs to the host, in the stream's order."""
        for array, address in self._outputs.values():
            if address:
                self._cuda.download(array, address, self._stream)

    def fetch(self) -> Dict[str, np.ndarray[Any, Any]]:
        """Copies of the outputs of the last inference."""
        return {name: np.array(array) for name, (array, _) in self._outputs.items()}

    def close(self) -> None:
        """Free the context, then the memory it knows."""
        self._context, self._launch = None, None
        self._inputs, self._outputs = [], {}
        self._scope.close()

    def profile(self, repeats: int) -> List[Tuple[str, float]]:
        """(layer, mean ms) over some inferences, in the order of execution."""
        self()
        profiler = api.profiler(self._engine.trt)
        self._context.profiler = profiler
        for _ in range(repeats):
            self()
        return [(name, total / repeats) for name, total in profiler.total_ms.items()]

    def use_graph(self) -> None:
        """From now on launch a CUDA graph; `TrtError` where the engine cannot be captured."""
        self()  # the first inference may allocate, which a capture forbids
        known = getattr(self._context, "is_stream_capturable", None)
        if known is not None and not known(self._stream):
            raise TrtError("the engine says that it cannot be captured", FAILED)
        self._launch = self._scope.capture(self._stream, self.enqueue)

    def _bind_input(self, tensor: api.Tensor, feeds: Arrays) -> None:
        if tensor.name not in feeds:
            raise TrtError("the engine has an input that nobody feeds", BAD, where=tensor.name)
        given = feeds[tensor.name]
        held = self._scope.pinned(given.shape, tensor.dtype)
        held[...] = _as(given, tensor)
        if not self._context.set_input_shape(tensor.name, given.shape):
            raise TrtError(
                "the engine's profile does not hold this shape: " + self._engine.log.last(),
                FAILED,
                where="input " + tensor.name,
                expected=str(list(tensor.shape)),
                got=str(list(given.shape)),
            )
        self._inputs.append((held, self._place(tensor, held)))

    def _bind_output(self, tensor: api.Tensor) -> None:
        shape = tuple(self._context.get_tensor_shape(tensor.name))
        if -1 in shape:
            raise TrtError(
                "an output whose size depends on data cannot be fetched here",
                FAILED,
                where="output " + tensor.name,
                got=str(list(shape)),
                fix="end the model before that operation (NonMaxSuppression, NonZero, …)",
            )
        held = self._scope.pinned(shape, tensor.dtype)
        self._outputs[tensor.name] = (held, self._place(tensor, held))

    def _place(self, tensor: api.Tensor, held: np.ndarray[Any, Any]) -> int:
        """The address of its memory on the GPU; 0 where the engine reads the host's."""
        address = 0 if tensor.on_host else self._scope.allocate(held.nbytes)
        if not self._context.set_tensor_address(tensor.name, address or held.ctypes.data):
            raise TrtError("the engine refuses its memory", FAILED, where=tensor.name)
        return address

    def _infer_shapes(self) -> None:
        missing = self._context.infer_shapes()
        if missing:
            raise TrtError(f"the engine still misses {', '.join(map(str, missing))}", FAILED)


def _as(given: np.ndarray[Any, Any], tensor: api.Tensor) -> np.ndarray[Any, Any]:
    """`given` in the engine's type: TensorRT 8.6 has no INT64 and reads it as INT32."""
    if str(given.dtype) == tensor.dtype:
        return given
    if str(given.dtype) == "int64" and tensor.dtype == "int32":
        narrow = given.astype(np.int32)
        if (narrow == given).all():
            return narrow
    raise TrtError(
        "the engine's input has another type",
        BAD,
        where="input " + tensor.name,
        expected=tensor.dtype,
        got=str(given.dtype),
    )
