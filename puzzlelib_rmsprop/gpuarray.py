"""PuzzleLib's ``gpuarray``: creates arrays for nets and data on the backend that ``Config.backend`` selects.

The arrays are ``pycuda.gpuarray.GPUArray`` on CUDA and :class:`~puzzlelib_rmsprop.arrays.CPUArray` on the CPU. CUDA arrays
are created in the current context; if there is none, the primary context of device ``Config.deviceIdx`` becomes current.

A script that uses PuzzleLib's ``from PuzzleLib.Backend import gpuarray`` only has to change that import.

Example:
    >>> import numpy as np
    >>> from puzzlelib_rmsprop import gpuarray
    >>> data = gpuarray.to_gpu(np.ones((2, 3), np.float32))
    >>> data.shape, data.dtype
    ((2, 3), dtype('float32'))
"""

from __future__ import annotations

import functools
import operator
import sys
from typing import Any

import numpy as np

from . import arrays
from .arrays.cpu_array import CPUArray, CPUArrayFamily
from .arrays.pycuda_array import PyCUDAFamily
from .config import Backend, Config
from .errors import ArrayError, SetupError
from .kernels import context

__all__ = ["GPUArray", "SharedArray", "StreamManager", "dtypesSupported", "empty", "streamManager", "to_gpu", "zeros"]


class _AnyArray(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, CPUArray) or PyCUDAFamily.of(instance) is not None


class GPUArray(metaclass=_AnyArray):
    """The type of the arrays created here, on either backend; for ``isinstance`` only.

    Attributes:
        shape, dtype, ndim, size, nbytes: as in NumPy.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    ndim: int
    size: int
    nbytes: int


# the answer does not change while a process runs
_cuda_is_there = functools.cache(context.available)


def _family() -> CPUArrayFamily | PyCUDAFamily:
    """Returns the family of new arrays; on CUDA, makes sure that a context is current."""
    backend = Config.backend
    if backend is Backend.cpu or (backend is Backend.auto and not _cuda_is_there()):
        return CPUArrayFamily()
    context.ensure_context()
    return PyCUDAFamily()


def to_gpu(ary: Any) -> Any:
    """Copies an array of any shape and of a numeric or boolean dtype to the device, C-contiguous.

    Raises:
        ArrayError: if ``ary`` is not numeric.
        DependencyError, DeviceError: if the selected backend is not available. Unless the backend is the CPU, also
            raised in a process that was forked after its parent began to use CUDA.
    """
    try:
        content = np.array(ary, order="C", copy=True, subok=False)
    except ValueError as error:
        raise ArrayError(f"to_gpu needs an array, or data convertible to one; got {type(ary).__name__}: {error}") from error
    if content.dtype.kind not in "fiub" and content.dtype.name != "bfloat16":
        raise ArrayError(f"to_gpu needs numbers; got {type(ary).__name__} of dtype {content.dtype}")
    family = _family()
    if isinstance(family, CPUArrayFamily):
        return family.wrap(content)
    array = family.empty(content.shape, content.dtype)
    family.set(array, content)
    return array


def empty(shape: int | tuple[int, ...], dtype: Any = np.float32) -> Any:
    """Returns a new array with uninitialized content. Raises the errors of :func:`to_gpu`."""
    return _family().empty(_shape(shape), _dtype(dtype))


def zeros(shape: int | tuple[int, ...], dtype: Any = np.float32) -> Any:
    """Returns a new array of zeros. Raises the errors of :func:`to_gpu`."""
    return _family().zeros(_shape(shape), _dtype(dtype))


def _shape(shape: Any) -> tuple[int, ...]:
    try:
        found = tuple(map(operator.index, shape if np.iterable(shape) else (shape,)))
    except TypeError:
        found = (-1,)
    if min(found, default=0) < 0:
        raise ArrayError(f"a shape must be an int, or a tuple of ints, of at least 0; got {shape!r}")
    return found


def _dtype(dtype: Any) -> np.dtype:
    try:
        return np.dtype(dtype)
    except TypeError as error:
        raise ArrayError(f"dtype must be one of NumPy's; got {dtype!r}") from error


def dtypesSupported() -> list[tuple[type, float]]:
    """Returns the dtypes that parameters may have, each with an absolute tolerance for comparing results."""
    return [(np.float32, 1e-5), (np.float16, 1e-2), (np.float64, 1e-12)]


class SharedArray(arrays.SharedArray):
    """:class:`puzzlelib_rmsprop.arrays.SharedArray` on the backend of ``Config.backend``, unless a family is given.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import gpuarray
        >>> shared = gpuarray.SharedArray(np.float32)
        >>> shared.register((2, 3), np.float32, "W")
        >>> shared.build()
        >>> shared["W"].shape
        (2, 3)
    """

    def __init__(self, dtype: Any = np.float32, family: arrays.Family | None = None) -> None:
        super().__init__(_dtype(dtype), family if family is not None else _family())

    def register(self, shape: int | tuple[int, ...], dtype: Any, name: str) -> None:
        """Registers an array of ``shape`` under ``name``. Raises ArrayError for another dtype or a duplicate name."""
        if not isinstance(name, str):
            raise ArrayError(f"the name of an array must be text; got {name!r}")
        super().register(_shape(shape), _dtype(dtype), name)


class Stream:
    """A queue of device work. It is always empty on the CPU, where a call returns when its work is done."""

    def synchronize(self) -> None:
        """Waits until the queue is empty."""


class StreamManager:
    """Lends streams and takes them back, as in PuzzleLib: on CUDA, ``pycuda.driver.Stream`` of the current context.

    Example:
        >>> from puzzlelib_rmsprop import gpuarray
        >>> streams = gpuarray.streamManager.borrow(2)
        >>> gpuarray.streamManager.give(streams)
    """

    def __init__(self) -> None:
        # keyed by the context of the streams; None stands for the CPU
        self._free: dict[Any, list[Any]] = {}
        self._lent: dict[int, tuple[Any, Any]] = {}

    def borrow(self, nitems: int) -> list[Any]:
        """Lends ``nitems`` streams to the caller until they are given back. Raises the errors of :func:`to_gpu`."""
        home: Any = None
        make: Any = Stream
        family = _family()
        if isinstance(family, PyCUDAFamily):
            home, make = sys.modules["pycuda.driver"].Context.get_current(), family.stream
        free = self._free.setdefault(home, [])
        borrowed = [free.pop() if free else make() for _ in range(nitems)]
        self._lent.update((id(stream), (home, stream)) for stream in borrowed)
        return borrowed

    def give(self, items: list[Any]) -> None:
        """Takes borrowed streams back. Raises SetupError for a stream that is not lent."""
        for stream in items:
            if id(stream) not in self._lent:
                raise SetupError(f"give() takes back streams that borrow() lent; got {stream!r}")
            home, _ = self._lent.pop(id(stream))
            self._free[home].append(stream)

    def clear(self) -> None:
        """Drops the streams that are not lent."""
        for free in self._free.values():
            free.clear()


streamManager = StreamManager()
