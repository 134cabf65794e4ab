"""What arrays on a GPU have in common, whoever allocated them: PyCUDA's driver works on their addresses."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ..errors import ArrayError, HyperParameterError
from ..kernels.context import NO_CONTEXT, default_stream_ended, driver_library, explained, refuse_after_fork
from .family import Family

__all__ = ["CUDAFamily"]


class CUDAFamily(Family):
    """Arrays with ``get`` and ``set``.

    A subclass adds :meth:`of`, :meth:`address`, :meth:`contiguous`, :meth:`empty` and :meth:`view`.
    """

    device = "cuda"
    alignment = 16  # as PuzzleLib's CUDA backend, so that flat state is laid out alike

    @explained
    def stream(self) -> Any:
        from pycuda import driver

        return driver.Stream()

    @explained
    def synchronize(self) -> None:
        from pycuda import driver

        driver.Context.synchronize()

    def check_stream(self, stream: Any) -> None:
        from pycuda import driver

        if not isinstance(stream, driver.Stream):
            raise HyperParameterError(
                f"stream must be a pycuda.driver.Stream, or None for the default one; got {stream!r}. Other libraries take "
                f"it: torch.cuda.ExternalStream(stream.handle), or cupy.cuda.ExternalStream(stream.handle)"
            )

    def kernels(self) -> Any:
        from ..kernels import cuda

        return cuda

    def contiguous(self, array: Any) -> bool:
        """Whether the elements lie one after the other, last index fastest."""
        raise NotImplementedError

    def fault(self, array: Any) -> str | None:
        if not self.contiguous(array):
            return (
                f"must be C-contiguous; its strides are {array.strides} for shape {tuple(array.shape)}: make it from "
                f"numpy.ascontiguousarray(array.get())"
            )
        dtype = np.dtype(array.dtype)
        if not dtype.isnative:
            return f"must be in the machine's byte order; its dtype is {dtype.str}"
        if array.size == 0:
            return None
        try:
            address = self.address(array)
        except Exception:  # whatever its library raises for memory that is gone
            return "has no memory: it was freed"
        if address % dtype.itemsize:
            # a kernel's load from there would end the context, and with it every array
            return f"must be aligned to its dtype {dtype}; it starts at an odd address, {address:#x}"
        return _context_fault(address)

    @explained
    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        array = self.empty(shape, dtype)
        self.fill_zero(array)
        return array

    @explained
    def fill_zero(self, array: Any, stream: Any = None) -> None:
        from pycuda import driver

        # bytes, because PyCUDA's own fill compiles a kernel and refuses float16
        if array.size:
            driver.memset_d8_async(self.address(array), 0, array.nbytes, stream)

    @explained
    def copy(self, target: Any, source: Any) -> None:
        from pycuda import driver

        if target.size:
            driver.memcpy_dtod_async(self.address(target), self.address(source), target.nbytes, None)

    @explained
    def get(self, array: Any) -> np.ndarray:
        return array.get()

    @explained
    def set(self, array: Any, content: np.ndarray) -> None:
        if content.shape != tuple(array.shape):
            raise ArrayError(f"cannot copy an array of shape {content.shape} into one of shape {tuple(array.shape)}")
        if array.size:
            array.set(content.astype(array.dtype, order="C", casting="same_kind", copy=False))
            default_stream_ended()  # what works on it may come on any stream


_CONTEXT, _DEVICE = 1, 9  # CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


def _context_fault(address: int) -> str | None:
    """Why memory cannot be used in the current context: none is current, it is another's, or it is no device memory."""
    library = driver_library()
    current = ctypes.c_void_p()
    library.cuCtxGetCurrent(ctypes.byref(current))
    if not current.value:
        refuse_after_fork()
        return f"lies on a GPU, but {NO_CONTEXT}"
    owner, device, own = ctypes.c_void_p(), ctypes.c_int(-1), ctypes.c_int(-1)
    # memory of a pool (cudaMallocAsync), or mapped into the address space, belongs to a device, not to a context
    if library.cuPointerGetAttribute(ctypes.byref(owner), _CONTEXT, ctypes.c_uint64(address)):
        owner.value = None
    if owner.value == current.value:
        return None
    if library.cuPointerGetAttribute(ctypes.byref(device), _DEVICE, ctypes.c_uint64(address)) or device.value < 0:
        return f"has an address, {address:#x}, at which no device memory lies: it was freed, or is of another process"
    library.cuCtxGetDevice(ctypes.byref(own))
    if owner.value or device.value != own.value:
        return (
            f"lies in another CUDA context than the current one (on device {device.value}); make all arrays of a net in one "
            f"context, and keep that current while the optimizer is used"
        )
    return None
