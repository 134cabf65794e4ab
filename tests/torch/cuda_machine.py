"""Stand-ins for PyTorch's CUDA streams, graphs and caching allocator, on the simulator."""

import contextlib
import ctypes
import itertools
import threading

import torch

from puzzlelib_rmsprop.kernels.context import driver_library, uncaptured
from tests.cudasim import control

_HOST_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_UNIT = 512  # the allocator's granularity in bytes


def _driver(name, *arguments):
    code = getattr(driver_library(), name)(*arguments)
    if code:
        raise RuntimeError(f"CUDA error: {name} answers {code}")


def index_of(device):
    device = torch.device(device)
    return machine.device if device.index is None else device.index


class Stream:
    """A stream of a device; a new one without a handle."""

    def __init__(self, device=0, handle=None):
        self.device = torch.device("cuda", device)
        if handle is None:
            made = ctypes.c_void_p()
            with machine.context(device):
                _driver("cuStreamCreate", ctypes.byref(made), ctypes.c_uint(1))  # non-blocking
            handle = made.value
        self.cuda_stream = handle

    def _call(self, name, *arguments):
        with machine.context(self.device.index):
            _driver(name, *arguments)

    def submit(self, work):
        """Queues a Python function, which must not call CUDA."""
        number = next(machine.numbers)
        machine.calls[number] = work, machine.is_capturing()
        self._call("cuLaunchHostFunc", ctypes.c_void_p(self.cuda_stream), machine.entry, ctypes.c_void_p(number))

    def poison(self, address, size):
        """Queues setting every bit to one, which is a NaN in every floating-point dtype."""
        stream = ctypes.c_void_p(self.cuda_stream)
        self._call("cuMemsetD8Async", ctypes.c_uint64(address), ctypes.c_ubyte(255), ctypes.c_size_t(size), stream)

    def synchronize(self):
        """Makes the host wait for the stream."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.cuda_stream))
        machine.check()

    def wait_stream(self, other):
        """Orders this stream after the work queued so far on the other."""
        event = ctypes.c_void_p()
        other._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(2))
        other._call("cuEventRecord", event, ctypes.c_void_p(other.cuda_stream))
        self._call("cuStreamWaitEvent", ctypes.c_void_p(self.cuda_stream), event, ctypes.c_uint(0))
        other._call("cuEventDestroy_v2", event)


class Graph:
    """A CUDA graph."""

    @contextlib.contextmanager
    def captured(self, stream):
        """Captures the work queued on the stream inside the context."""
        machine.graphs += 1
        handle, graph, self._executable = ctypes.c_void_p(stream.cuda_stream), ctypes.c_void_p(), ctypes.c_void_p()
        with machine.on_stream(stream):
            stream._call("cuStreamBeginCapture_v2", handle, 0)  # as in PyTorch, unsafe calls fail in every thread
            try:
                yield
            finally:
                stream._call("cuStreamEndCapture", handle, ctypes.byref(graph))
        stream._call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))

    def replay(self):
        """Queues the captured work on the current stream."""
        stream = machine.current_stream()
        stream._call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.cuda_stream))


class Storage:
    """Device memory allocated for the current stream. It returns to that stream when its last tensor is freed."""

    def __init__(self, device, size):
        self.stream = machine.current_stream(device)
        self.size = max(-(-size // _UNIT), 1) * _UNIT
        # memory allocated in a capture belongs to its graph alone
        owner = self.stream.cuda_stream, machine.graphs if machine.is_capturing() else None
        self._pool = machine.pools.setdefault((device, owner, self.size), [])
        if self._pool:
            self.address = self._pool.pop()
        else:
            found = ctypes.c_uint64()
            with machine.context(device), uncaptured():
                _driver("cuMemAlloc_v2", ctypes.byref(found), ctypes.c_size_t(self.size))
            self.address = found.value
            with control.eager():  # reading it too early gives NaN, not a fault that ends the process
                machine.filler(device).poison(self.address, self.size)
        self.stream.poison(self.address, self.size)
        self.bytes = torch.frombuffer((ctypes.c_ubyte * self.size).from_address(self.address), dtype=torch.uint8)

    def __del__(self):
        self._pool.append(self.address)


class Machine:
    """PyTorch's bookkeeping of the devices."""

    def __init__(self):
        self.fillers = {}
        self.primaries, self.pools, self.calls, self.errors = {}, {}, {}, []
        self.numbers, self.graphs = itertools.count(1), 0
        self._local = threading.local()
        self.entry = _HOST_CALL(self._enter)

    def _enter(self, number):
        try:
            with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction(), torch.no_grad():
                work, again = self.calls[number]
                work()
                if not again:
                    del self.calls[number]
        except BaseException as error:  # no caller could catch it
            self.errors.append(error)

    def check(self):
        """Raises the error of an operation that failed while it ran."""
        if self.errors:
            raise self.errors.pop()

    def start(self):
        """Like the runtime, makes the primary context of the first device current if none is."""
        current = ctypes.c_void_p()
        _driver("cuInit", ctypes.c_uint(0))
        _driver("cuCtxGetCurrent", ctypes.byref(current))
        if not current.value:
            _driver("cuCtxSetCurrent", self.primary(0))

    def filler(self, device):
        """Returns a stream that is not ordered with any other."""
        if device not in self.fillers:
            self.fillers[device] = Stream(device)
        return self.fillers[device]

    def primary(self, device):
        if device not in self.primaries:
            found = ctypes.c_void_p()
            _driver("cuDevicePrimaryCtxRetain", ctypes.byref(found), ctypes.c_int(device))
            self.primaries[device] = found
        return self.primaries[device]

    @contextlib.contextmanager
    def context(self, device):
        _driver("cuCtxPushCurrent_v2", self.primary(device))
        try:
            yield
        finally:
            _driver("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    @property
    def device(self):
        return getattr(self._local, "device", 0)

    def set_device(self, device):
        """Like the runtime, replaces the current context by the primary context."""
        if device != self.device:
            _driver("cuCtxSetCurrent", self.primary(device))
            self._local.device = device

    def streams(self):
        return self._local.__dict__.setdefault("streams", {})

    def current_stream(self, device=None):
        device = self.device if device is None else index_of(device) if not isinstance(device, int) else device
        return self.streams().get(device) or Stream(device, 0)

    @contextlib.contextmanager
    def on_stream(self, stream):
        device, streams = stream.device.index, self.streams()
        before, streams[device] = streams.get(device), stream
        with self.on_device(device):
            try:
                yield
            finally:
                streams[device] = before

    @contextlib.contextmanager
    def on_device(self, device):
        before = self.device
        self.set_device(index_of(device) if not isinstance(device, int) else device)
        try:
            yield
        finally:
            self.set_device(before)

    def is_capturing(self):
        """Returns whether the current stream of the current device is being captured."""
        status = ctypes.c_int()
        stream = self.current_stream()
        stream._call("cuStreamIsCapturing", ctypes.c_void_p(stream.cuda_stream), ctypes.byref(status))
        return status.value != 0

    def synchronize(self):
        for device in self.primaries:
            with self.context(device):
                _driver("cuCtxSynchronize")
        self.check()


machine = Machine()
