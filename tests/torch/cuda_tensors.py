"""Stand-ins for PyTorch's CUDA tensors, for its CPU build: they are in the simulator's memory and work on its streams.

An operation is queued on the current stream and computed by PyTorch's CPU kernels when the simulator executes it, in any
order that CUDA allows. Memory is poisoned when it is allocated, in stream order, and freed memory is reused at once by the
next tensor of the same stream and size, as by PyTorch's caching allocator. Operations that make PyTorch wait for a device
wait here too: `.item()`, a copy to the host, and a copy from the host without non_blocking. As in PyTorch, new streams are
not ordered with the default one. Autograd does not run on these tensors: assign gradients.
"""

import contextlib
import ctypes
import os
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from tests.torch.cuda_machine import Graph, Storage, Stream, index_of, machine

__all__ = ["CudaTensor", "Graph", "Stream", "cuda_of_torch"]

_aten = torch.ops.aten
_READS = {_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default}


def on_host(tensor):
    """Returns a CPU view of a stand-in's memory; any other value as it is."""
    return tensor.inner if isinstance(tensor, CudaTensor) else tensor


class CudaTensor(torch.Tensor):
    """A tensor that reports to be on a CUDA device."""

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
        return True  # as for every CUDA tensor of PyTorch

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


def _with_index(value):
    """Returns a device with its index, which the device guard would not know."""
    if (isinstance(value, str) and value == "cuda") or (isinstance(value, torch.device) and value.type == "cuda"):
        return torch.device("cuda", index_of(value))
    return value


def _is_cuda(device):
    return device is not None and torch.device(device).type == "cuda"


def _queue(device, func, args, kwargs, into=None):
    """Queues calling ``func`` on the memory, and copying its results into new tensors."""
    host_args, host_kwargs = tree_map(on_host, (args, kwargs))
    targets = [on_host(each) for each in into or []]

    def work():
        found = func(*host_args, **host_kwargs)
        if targets:
            results = [each for each in tree_flatten(found)[0] if isinstance(each, torch.Tensor)]
            for target, result in zip(targets, results, strict=True):
                target.copy_(result)

    machine.current_stream(device).submit(work)


def _copy(target, source, non_blocking):
    """``copy_`` in any direction."""
    if isinstance(target, CudaTensor):
        if isinstance(source, CudaTensor):
            if source.index != target.index:  # PyTorch uses the source's stream, ordered with the target's
                machine.current_stream(source.index).wait_stream(machine.current_stream(target.index))
            _queue(source.index, _aten.copy_.default, (target, source), {})
            if source.index != target.index:
                machine.current_stream(target.index).wait_stream(machine.current_stream(source.index))
            return target
        _queue(target.index, _aten.copy_.default, (target, source.clone()), {})  # the driver has read the source on return
        if not non_blocking:
            machine.current_stream(target.index).synchronize()
        return target
    machine.current_stream(source.index).synchronize()
    return target.copy_(source.inner)


def dispatch(func, args, kwargs):
    """Runs one operation with an argument on CUDA."""
    flat = tree_flatten((args, kwargs))[0]
    tensors = [each for each in flat if isinstance(each, torch.Tensor)]
    own = [each for each in tensors if isinstance(each, CudaTensor)]
    if func is _aten.copy_.default:
        return _copy(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if func is _aten._to_copy.default:
        return _to_copy(args[0], **kwargs)
    device = own[0].index if own else index_of(kwargs["device"])
    if any(each.index != device for each in own) or any(t.dim() for t in tensors if not isinstance(t, CudaTensor)):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
    if func in _READS:
        machine.current_stream(device).synchronize()
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
    where = source.index if device is None else index_of(device)
    return _copy(empty(tuple(like.shape), dtype, where, like.stride()), source, non_blocking)


class _Factories(TorchDispatchMode):
    """Functions that create CUDA tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_cuda(kwargs.get("device")) or any(isinstance(a, CudaTensor) for a in tree_flatten((args, kwargs))[0]):
            return dispatch(func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Functions that modes do not intercept."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(_with_index, (args, kwargs or {}))
        if func is torch.tensor and _is_cuda(kwargs.get("device")):
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        if func is torch.Tensor.cuda:
            return args[0].to(torch.device("cuda", machine.device))
        return func(*args, **kwargs)


@contextlib.contextmanager
def _device_guard():
    """Gives PyTorch's C++ the device guard of the meta device, which does nothing."""
    library = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libc10.so"))
    registry = (ctypes.c_void_p * 15).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, registry[1] = registry[1], registry[14]
    try:
        yield
    finally:
        registry[1] = before


@contextlib.contextmanager
def cuda_of_torch():
    """Inside the context, ``device="cuda"`` and ``torch.cuda`` are the stand-ins. Yields the machine."""
    names = {
        "current_stream": machine.current_stream,
        "stream": machine.on_stream,
        "device": machine.on_device,
        "Stream": Stream,
        "is_initialized": lambda: True,
        "is_available": lambda: True,
        "current_device": lambda: machine.device,
        "is_current_stream_capturing": machine.is_capturing,
        "synchronize": machine.synchronize,
        "_lazy_init": lambda: None,
    }
    machine.start()
    with contextlib.ExitStack() as stack:
        for name, stand_in in names.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(_device_guard())
        stack.enter_context(_Functions())
        stack.enter_context(_Factories())
        yield machine
        machine.synchronize()
