"""Stand-ins for PyTorch's tensors on CUDA, for its CPU build: they lie in the simulator's memory and work on its streams.

An operation is queued on the current stream and computed by PyTorch's CPU kernels when the simulator comes to it, in any
order that CUDA allows. Memory is poisoned when it is handed out, in the stream's order, and what is freed goes to the next
tensor of the same stream and size at once, as PyTorch's caching allocator has it. What makes PyTorch wait for a device
waits here: `.item()`, a copy to the host, and one from the host without non_blocking. New streams are not ordered with the
default one, as PyTorch's are not. Autograd does not run on them: assign gradients.
"""

import contextlib
import ctypes
import itertools
import os
import threading
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from puzzlelib_rmsprop.kernels.context import driver_library, uncaptured
from tests.cudasim import control

_aten = torch.ops.aten
_HOST_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_UNIT = 512  # of the allocator, bytes
_READS = {_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default}


def _driver(name, *arguments):
    code = getattr(driver_library(), name)(*arguments)
    if code:
        raise RuntimeError(f"CUDA error: {name} answers {code}")


def on_host(tensor):
    """The CPU's view of the memory of a stand-in; any other value as it is."""
    return tensor.inner if isinstance(tensor, CudaTensor) else tensor


class Stream:
    """A stream of a device; without a handle a new one."""

    def __init__(self, device=0, handle=None):
        self.device = torch.device("cuda", device)
        if handle is None:
            made = ctypes.c_void_p()
            with _machine.context(device):
                _driver("cuStreamCreate", ctypes.byref(made), ctypes.c_uint(1))  # non-blocking
            handle = made.value
        self.cuda_stream = handle

    def _call(self, name, *arguments):
        with _machine.context(self.device.index):
            _driver(name, *arguments)

    def submit(self, work):
        """Queues a function of Python's, which must not call CUDA."""
        number = next(_machine.numbers)
        _machine.calls[number] = work, _machine.is_capturing()
        self._call("cuLaunchHostFunc", ctypes.c_void_p(self.cuda_stream), _machine.entry, ctypes.c_void_p(number))

    def poison(self, address, size):
        """Queues ones into every bit: NaN in every dtype of floats."""
        stream = ctypes.c_void_p(self.cuda_stream)
        self._call("cuMemsetD8Async", ctypes.c_uint64(address), ctypes.c_ubyte(255), ctypes.c_size_t(size), stream)

    def synchronize(self):
        """Has the host wait."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(self.cuda_stream))
        _machine.check()

    def wait_stream(self, other):
        """Orders it after what the other was given so far."""
        event = ctypes.c_void_p()
        other._call("cuEventCreate", ctypes.byref(event), ctypes.c_uint(2))
        other._call("cuEventRecord", event, ctypes.c_void_p(other.cuda_stream))
        self._call("cuStreamWaitEvent", ctypes.c_void_p(self.cuda_stream), event, ctypes.c_uint(0))
        other._call("cuEventDestroy_v2", event)


class Graph:
    """A CUDA graph."""

    @contextlib.contextmanager
    def captured(self, stream):
        """Inside, what the stream is given is captured."""
        _machine.graphs += 1
        handle, graph, self._executable = ctypes.c_void_p(stream.cuda_stream), ctypes.c_void_p(), ctypes.c_void_p()
        with _machine.on_stream(stream):
            stream._call("cuStreamBeginCapture_v2", handle, 0)  # what is unsafe in any thread fails, as PyTorch has it
            try:
                yield
            finally:
                stream._call("cuStreamEndCapture", handle, ctypes.byref(graph))
        stream._call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))

    def replay(self):
        """Queues what was captured on the current stream."""
        stream = _machine.current_stream()
        stream._call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream.cuda_stream))


class Storage:
    """Memory of a device, of the stream that is current. It goes back to that stream with the last tensor in it."""

    def __init__(self, device, size):
        self.stream = _machine.current_stream(device)
        self.size = max(-(-size // _UNIT), 1) * _UNIT
        # what is made in a capture is of its graph alone
        owner = self.stream.cuda_stream, _machine.graphs if _machine.is_capturing() else None
        self._pool = _machine.pools.setdefault((device, owner, self.size), [])
        if self._pool:
            self.address = self._pool.pop()
        else:
            found = ctypes.c_uint64()
            with _machine.context(device), uncaptured():
                _driver("cuMemAlloc_v2", ctypes.byref(found), ctypes.c_size_t(self.size))
            self.address = found.value
            with control.eager():  # what is read too early is NaN then, and no fault that ends everything
                _machine.filler(device).poison(self.address, self.size)
        self.stream.poison(self.address, self.size)
        self.bytes = torch.frombuffer((ctypes.c_ubyte * self.size).from_address(self.address), dtype=torch.uint8)

    def __del__(self):
        self._pool.append(self.address)


class CudaTensor(torch.Tensor):
    """A tensor that says that it is on a CUDA device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, storage, device):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cuda", device),
        )
        made.inner, made.storage, made.index = inner, storage, device
        return made

    def data_ptr(self):
        return self.inner.data_ptr() if self.inner.numel() else 0

    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), self.detach().clone().requires_grad_(self.requires_grad))

    def is_shared(self):
        return True  # as PyTorch says of every CUDA tensor

    def __repr__(self, **_):
        return f"CudaTensor({self.cpu()!r}, device='{self.device}')"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def empty(shape, dtype, device=0, strides=None):
    """An uninitialised tensor."""
    like = torch.empty(shape, dtype=dtype, device="meta")
    strides = like.stride() if strides is None else strides
    extent = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1 if like.numel() else 0
    storage = Storage(device, extent * dtype.itemsize)
    return CudaTensor(storage.bytes.view(dtype).as_strided(shape, strides), storage, device)


def _index(device):
    device = torch.device(device)
    return _machine.device if device.index is None else device.index


def _with_index(value):
    """A device with its number, which the guard would not know."""
    if (isinstance(value, str) and value == "cuda") or (isinstance(value, torch.device) and value.type == "cuda"):
        return torch.device("cuda", _index(value))
    return value


def _is_cuda(device):
    return device is not None and torch.device(device).type == "cuda"


def _queue(device, func, args, kwargs, into=None):
    """Has the current stream call ``func`` on the memory, and copy what it gives into new tensors."""
    host_args, host_kwargs = tree_map(on_host, (args, kwargs))
    targets = [on_host(each) for each in into or []]

    def work():
        found = func(*host_args, **host_kwargs)
        if targets:
            results = [each for each in tree_flatten(found)[0] if isinstance(each, torch.Tensor)]
            for target, result in zip(targets, results, strict=True):
                target.copy_(result)

    _machine.current_stream(device).submit(work)


def _copy(target, source, non_blocking):
    """``copy_``, in whatever direction."""
    if isinstance(target, CudaTensor):
        if isinstance(source, CudaTensor):
            if source.index != target.index:  # PyTorch does it on the source's stream, joined with the target's
                _machine.current_stream(source.index).wait_stream(_machine.current_stream(target.index))
            _queue(source.index, _aten.copy_.default, (target, source), {})
            if source.index != target.index:
                _machine.current_stream(target.index).wait_stream(_machine.current_stream(source.index))
            return target
        _queue(target.index, _aten.copy_.default, (target, source.clone()), {})  # the driver has read it on return
        if not non_blocking:
            _machine.current_stream(target.index).synchronize()
        return target
    _machine.current_stream(source.index).synchronize()
    return target.copy_(source.inner)


def dispatch(func, args, kwargs):
    """One operation of which something is on CUDA."""
    flat = tree_flatten((args, kwargs))[0]
    tensors = [each for each in flat if isinstance(each, torch.Tensor)]
    own = [each for each in tensors if isinstance(each, CudaTensor)]
    if func is _aten.copy_.default:
        return _copy(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if func is _aten._to_copy.default:
        return _to_copy(args[0], **kwargs)
    device = own[0].index if own else _index(kwargs["device"])
    if any(each.index != device for each in own) or any(t.dim() for t in tensors if not isinstance(t, CudaTensor)):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
    if func in _READS:
        _machine.current_stream(device).synchronize()
        return func(*tree_map(on_host, args), **kwargs)
    if func.is_view or func in (_aten.detach.default, _aten.lift_fresh.default):
        source = own[0]
        wrap = lambda inner: CudaTensor(inner, source.storage, device)  # noqa: E731
        found = func(*tree_map(on_host, args), **tree_map(on_host, kwargs))
        return wrap(found) if isinstance(found, torch.Tensor) else [wrap(each) for each in found]
    if func._schema.is_mutable:
        _queue(device, func, args, kwargs)
        written = [
            kwargs[argument.name] if argument.name in kwargs else args[place]
            for place, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        return written[0] if func._schema.returns else None

    def to_meta(value):
        if isinstance(value, torch.Tensor):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return value

    meta_args, meta_kwargs = tree_map(to_meta, (args, kwargs))
    on_cpu = dict(kwargs)
    if "device" in kwargs:
        meta_kwargs["device"], on_cpu["device"] = torch.device("meta"), torch.device("cpu")
    result = func(*meta_args, **meta_kwargs)
    made = tree_map(lambda meta: empty(tuple(meta.shape), meta.dtype, device, meta.stride()), result)
    if func.name().split("::")[1].split(".")[0] not in ("empty", "empty_like", "empty_strided", "new_empty"):
        _queue(device, func, args, on_cpu, tree_flatten(made)[0])
    return made


def _to_copy(source, *, dtype=None, device=None, non_blocking=False, memory_format=None, **_):
    dtype = dtype or source.dtype
    goes = _is_cuda(device) if device is not None else isinstance(source, CudaTensor)
    like = torch.empty_strided(source.shape, source.stride(), dtype=dtype, device="meta")
    like = torch.empty_like(like, memory_format=memory_format or torch.preserve_format)
    if not goes:
        made = torch.empty_strided(like.shape, like.stride(), dtype=dtype)
        return _copy(made, source, non_blocking)
    where = source.index if device is None else _index(device)
    return _copy(empty(tuple(like.shape), dtype, where, like.stride()), source, non_blocking)


class _Factories(TorchDispatchMode):
    """What makes tensors on CUDA out of none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_cuda(kwargs.get("device")) or any(isinstance(a, CudaTensor) for a in tree_flatten((args, kwargs))[0]):
            return dispatch(func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """What PyTorch does below the level of modes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(_with_index, (args, kwargs or {}))
        if func is torch.tensor and _is_cuda(kwargs.get("device")):
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        if func is torch.Tensor.cuda:
            return args[0].to(torch.device("cuda", _machine.device))
        return func(*args, **kwargs)


class Machine:
    """What PyTorch keeps of the devices."""

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
        except BaseException as error:  # there is nobody to raise it to
            self.errors.append(error)

    def check(self):
        """Raises what an operation raised when it ran."""
        if self.errors:
            raise self.errors.pop()

    def start(self):
        """As the runtime does it: the primary context of the first device is current, where none is."""
        current = ctypes.c_void_p()
        _driver("cuInit", ctypes.c_uint(0))
        _driver("cuCtxGetCurrent", ctypes.byref(current))
        if not current.value:
            _driver("cuCtxSetCurrent", self.primary(0))

    def filler(self, device):
        """A stream that nothing is ordered with."""
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
        """As the runtime does it: the primary context takes the place of the current one."""
        if device != self.device:
            _driver("cuCtxSetCurrent", self.primary(device))
            self._local.device = device

    def streams(self):
        return self._local.__dict__.setdefault("streams", {})

    def current_stream(self, device=None):
        device = self.device if device is None else _index(device) if not isinstance(device, int) else device
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
        self.set_device(_index(device) if not isinstance(device, int) else device)
        try:
            yield
        finally:
            self.set_device(before)

    def is_capturing(self):
        """Whether the current stream of the current device is captured."""
        status = ctypes.c_int()
        stream = self.current_stream()
        stream._call("cuStreamIsCapturing", ctypes.c_void_p(stream.cuda_stream), ctypes.byref(status))
        return status.value != 0

    def synchronize(self):
        for device in self.primaries:
            with self.context(device):
                _driver("cuCtxSynchronize")
        self.check()


_machine = Machine()


@contextlib.contextmanager
def _device_guard():
    """PyTorch's C++ asks for a guard of the device: it gets that of the meta device, which does nothing."""
    library = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libc10.so"))
    registry = (ctypes.c_void_p * 15).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, registry[1] = registry[1], registry[14]
    try:
        yield
    finally:
        registry[1] = before


@contextlib.contextmanager
def cuda_of_torch():
    """Inside, ``device="cuda"`` and ``torch.cuda`` are the stand-ins'. Gives the machine."""
    names = {
        "current_stream": _machine.current_stream,
        "stream": _machine.on_stream,
        "device": _machine.on_device,
        "Stream": Stream,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "current_device": lambda: _machine.device,
        "is_current_stream_capturing": _machine.is_capturing,
        "synchronize": _machine.synchronize,
        "_lazy_init": lambda: None,
    }
    _machine.start()
    with contextlib.ExitStack() as stack:
        for name, stand_in in names.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(_device_guard())
        stack.enter_context(_Functions())
        stack.enter_context(_Factories())
        yield _machine
        _machine.synchronize()
