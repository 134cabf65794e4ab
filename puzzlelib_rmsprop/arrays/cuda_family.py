"""Operations on GPU arrays of any library: PyCUDA's driver API works on their addresses."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ..errors import ArrayError, HyperParameterError
from ..kernels import LENIENT, PLAIN, Hyper, Operation, ScalingPolicy, Segment, StepOptions
from ..kernels.context import NO_CONTEXT, default_stream_ended, driver_library, explained, refuse_after_fork
from ..kernels.foreign_stream import launching_on
from .family import Family

__all__ = ["CUDAFamily", "ForeignCUDAFamily"]


class CUDAFamily(Family):
    """Arrays with ``get`` and ``set``.

    A subclass adds :meth:`of`, :meth:`address`, :meth:`contiguous`, :meth:`empty` and :meth:`view`.
    """

    device = "cuda"
    alignment = 16  # as in PuzzleLib's CUDA backend, so that flat state has the same layout
    contiguous_copy = "make it from numpy.ascontiguousarray(array.get())"

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
                f"stream must be a pycuda.driver.Stream, or None for the default stream; got {stream!r}. To use the same "
                f"stream in another library, wrap it: torch.cuda.ExternalStream(stream.handle), or "
                f"cupy.cuda.ExternalStream(stream.handle)"
            )

    def kernels(self) -> Any:
        from ..kernels import cuda

        return cuda

    def contiguous(self, array: Any) -> bool:
        """Returns whether the array is C-contiguous."""
        raise NotImplementedError

    def strides(self, array: Any) -> tuple[int, ...] | None:
        """Returns the strides in bytes, for error messages."""
        return tuple(array.strides)

    def fault(self, array: Any) -> str | None:
        if not self.contiguous(array):
            return (
                f"must be C-contiguous; its strides are {self.strides(array)} for shape {self.shape(array)}: "
                f"{self.contiguous_copy}"
            )
        dtype = self.dtype(array)
        if not dtype.isnative:
            return f"must be in the machine's byte order; its dtype is {dtype.str}"
        if self.size(array) == 0:
            return None
        try:
            address = self.address(array)
        except Exception:  # the libraries raise different errors for freed memory
            return "has no memory: it was freed"
        if address % dtype.itemsize:
            # a misaligned load would destroy the context, and every array in it
            return f"must be aligned to its dtype {dtype}; it starts at the unaligned address {address:#x}"
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
        nbytes = self.nbytes(array)
        if nbytes:
            driver.memset_d8_async(self.address(array), 0, nbytes, stream)

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
            default_stream_ended()  # the array may be used next on any stream


class ForeignCUDAFamily(CUDAFamily):
    """Arrays of another library, which works on them on its own streams. Only their addresses are used here.

    Besides the methods that :class:`CUDAFamily` requires, a subclass defines :meth:`handles`.
    """

    def handles(self, arrays: Iterable[Any]) -> Iterable[int]:
        """Returns handles of the streams on which the user works on ``arrays``. 0 and 1 stand for the default stream."""
        raise NotImplementedError

    def joined(self, arrays: Iterable[Any], stream: Any = None) -> AbstractContextManager[Any]:
        return launching_on(*self.handles(arrays), stream=stream)

    def table(self, segments: Sequence[Segment], arrays: Sequence[Any]) -> Any:
        return _Joined(super().table(segments, arrays), functools.partial(self.joined, arrays))

    def statistics(self, segments: Sequence[Segment], record: int, arrays: Sequence[Any]) -> Any:
        return _Joined(super().statistics(segments, record, arrays), functools.partial(self.joined, arrays))

    def check_stream(self, stream: Any) -> None:
        try:
            super().check_stream(stream)
        except HyperParameterError as error:
            raise HyperParameterError(f"{error}. With None, the current stream of the arrays' library is used") from None

    @explained
    def fill_zero(self, array: Any, stream: Any = None) -> None:
        with self.in_order(stream, array) as own:
            super().fill_zero(array, own)

    def operate(self, grad: Any, param: Any, wc: float, operations: Sequence[Operation], stream: Any = None) -> None:
        with self.in_order(stream, grad, param) as own:
            super().operate(grad, param, wc, operations, own)

    @explained
    def copy(self, target: Any, source: Any) -> None:
        from pycuda import driver

        nbytes = self.nbytes(target)
        if nbytes:
            with self.joined((target, source)) as own:
                driver.memcpy_dtod_async(self.address(target), self.address(source), nbytes, own)

    @explained
    def get(self, array: Any) -> np.ndarray:
        from pycuda import driver

        content = np.empty(self.shape(array), self.dtype(array))
        if content.size:
            with self.joined((array,)) as own:
                # as bytes: PyCUDA does not accept bfloat16 buffers
                driver.memcpy_dtoh_async(content.reshape(-1).view(np.uint8), self.address(array), own)
                _wait(own)
        return content

    @explained
    def set(self, array: Any, content: np.ndarray) -> None:
        from pycuda import driver

        if content.shape != self.shape(array):
            raise ArrayError(f"cannot copy an array of shape {content.shape} into one of shape {self.shape(array)}")
        if not content.size:
            return
        # to NumPy, bfloat16 is a kind of its own
        dtype = self.dtype(array)
        casting: Any = "unsafe" if dtype.name == "bfloat16" else "same_kind"
        content = content.astype(dtype, order="C", casting=casting, copy=False)
        with self.joined((array,)) as own:
            driver.memcpy_htod_async(self.address(array), content.reshape(-1).view(np.uint8), own)
            _wait(own)


class _Joined:
    """Wraps the kernels' table or statistics: calls without a stream are ordered with the streams of the arrays' users."""

    def __init__(self, made: Any, joined: Callable[[], AbstractContextManager[Any]]) -> None:
        self._made, self._joined = made, joined

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made, name)

    def update(self, hyper: Hyper, stream: Any = None, options: StepOptions = PLAIN) -> None:
        with self._joined() if stream is None else nullcontext(stream) as own:
            self._made.update(hyper, own, options)

    def zero_gradients(self, stream: Any = None) -> None:
        with self._joined() if stream is None else nullcontext(stream) as own:
            self._made.zero_gradients(own)

    def run(self, operations: tuple[Operation, ...] = (), policy: ScalingPolicy = LENIENT, stream: Any = None) -> None:
        with self._joined() if stream is None else nullcontext(stream) as own:
            self._made.run(operations, policy, own)


def _wait(stream: Any) -> None:
    """Waits for an asynchronous copy: the host's memory must stay valid until it is done."""
    if stream is None:
        default_stream_ended()
    else:
        stream.synchronize()


_CONTEXT, _DEVICE = 1, 9  # CU_POINTER_ATTRIBUTE_CONTEXT, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


def _context_fault(address: int) -> str | None:
    """Returns why memory cannot be used in the current context, or None if it can."""
    library = driver_library()
    current = ctypes.c_void_p()
    library.cuCtxGetCurrent(ctypes.byref(current))
    if not current.value:
        refuse_after_fork()
        return f"is on a GPU, but {NO_CONTEXT}"
    owner, device, own = ctypes.c_void_p(), ctypes.c_int(-1), ctypes.c_int(-1)
    # memory from a pool (cudaMallocAsync) or mapped memory belongs to a device, not to a context
    if library.cuPointerGetAttribute(ctypes.byref(owner), _CONTEXT, ctypes.c_uint64(address)):
        owner.value = None
    if owner.value == current.value:
        return None
    if library.cuPointerGetAttribute(ctypes.byref(device), _DEVICE, ctypes.c_uint64(address)) or device.value < 0:
        return f"has the address {address:#x}, which is not in device memory: it was freed, or belongs to another process"
    library.cuCtxGetDevice(ctypes.byref(own))
    if owner.value or device.value != own.value:
        return (
            f"lies in another CUDA context than the current one (on device {device.value}): make all arrays of a net in one "
            f"context, and keep it current while the optimizer is used"
        )
    return None
