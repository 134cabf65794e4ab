"""``pycuda.gpuarray.GPUArray``: memory of a GPU, in the context that PyCUDA made or shares."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from ..errors import ArrayError
from ..kernels.context import driver_library
from .family import Family

__all__ = ["PyCUDAFamily"]


class PyCUDAFamily(Family):
    """PyCUDA's arrays. Recognised only where the user has imported PyCUDA."""

    name = "pycuda.gpuarray.GPUArray"
    dtypes = ("float16", "bfloat16", "float32", "float64")
    device = "cuda"
    alignment = 16  # as PuzzleLib's CUDA backend, so that flat state is laid out alike

    @classmethod
    def of(cls, array: Any) -> PyCUDAFamily | None:
        module = sys.modules.get("pycuda.gpuarray")
        return cls() if module is not None and isinstance(array, module.GPUArray) else None

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def stream(self) -> Any:
        from pycuda import driver

        return driver.Stream()

    def kernels(self) -> Any:
        from ..kernels import cuda

        return cuda

    def fault(self, array: Any) -> str | None:
        if not array.flags.c_contiguous:
            return f"must be C-contiguous; its strides are {array.strides} for shape {array.shape}"
        if array.size == 0:
            return None
        try:
            address = int(array.gpudata)
        except Exception:  # PyCUDA's own error, or whatever a foreign allocation raises
            return "has no memory: it was freed"
        return _context_fault(address)

    def address(self, array: Any) -> int:
        return int(array.gpudata) if array.size else 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        from pycuda import gpuarray

        return gpuarray.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        array = self.empty(shape, dtype)
        self.fill_zero(array)
        return array

    def fill_zero(self, array: Any, stream: Any = None) -> None:
        from pycuda import driver

        # bytes, because PyCUDA's own fill compiles a kernel and refuses float16
        if array.size:
            driver.memset_d8_async(array.gpudata, 0, array.nbytes, stream)

    def view(self, flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
        from pycuda import gpuarray

        address = self.address(flat) + offset * flat.dtype.itemsize
        return gpuarray.GPUArray(shape, flat.dtype, base=flat, gpudata=address)

    def copy(self, target: Any, source: Any) -> None:
        from pycuda import driver

        if target.size:
            driver.memcpy_dtod_async(target.gpudata, source.gpudata, target.nbytes, None)

    def get(self, array: Any) -> np.ndarray:
        return array.get()

    def set(self, array: Any, content: np.ndarray) -> None:
        if content.shape != tuple(array.shape):
            raise ArrayError(f"cannot copy an array of shape {content.shape} into one of shape {tuple(array.shape)}")
        if array.size:
            array.set(content.astype(array.dtype, order="C", casting="same_kind", copy=False))


_CONTEXT, _DEVICE = 1, 9  # CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


def _context_fault(address: int) -> str | None:
    """Why memory cannot be used in the current context: none is current, it is another's, or it is no device memory."""
    library = driver_library()
    current = ctypes.c_void_p()
    library.cuCtxGetCurrent(ctypes.byref(current))
    if not current.value:
        return "lies on a GPU, but no CUDA context is current in this thread; make or push one (pycuda.autoprimaryctx)"
    owner = ctypes.c_void_p()
    if library.cuPointerGetAttribute(ctypes.byref(owner), _CONTEXT, ctypes.c_uint64(address)):
        return f"has an address, {address:#x}, at which no device memory lies: it was freed, or is of another process"
    # memory of a pool belongs to a device, not to a context
    if owner.value and owner.value != current.value:
        device = ctypes.c_int()
        library.cuPointerGetAttribute(ctypes.byref(device), _DEVICE, ctypes.c_uint64(address))
        return (
            f"lies in another CUDA context than the current one (on device {device.value}); make all arrays of a net in one "
            f"context, and keep that current while the optimizer is used"
        )
    return None
