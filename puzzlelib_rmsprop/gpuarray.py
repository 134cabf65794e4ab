"""PuzzleLib's ``gpuarray``: arrays for nets and data, where ``Config.backend`` says.

They are ``pycuda.gpuarray.GPUArray`` on CUDA and :class:`~puzzlelib_rmsprop.arrays.CPUArray` on the CPU. On CUDA the
current context is used; where none is current, the primary one of ``Config.deviceIdx`` is made so.

A script written for PuzzleLib's ``from PuzzleLib.Backend import gpuarray`` runs on it after swapping that import.

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
    """What the arrays made here are instances of, on either backend; for ``isinstance`` only.

    Attributes:
        shape, dtype, ndim, size, nbytes: as NumPy's.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    ndim: int
    size: int
    nbytes: int


# what is there does not change while a process runs
_cuda_is_there = functools.cache(context.available)


def _family() -> CPUArrayFamily | PyCUDAFamily:
    """The family of the arrays to make; on CUDA with a current context to make them in."""
    backend = Config.backend
    if backend is Backend.cpu or (backend is Backend.auto and not _cuda_is_there()):
        return CPUArrayFamily()
    context.ensure_context()
    return PyCUDAFamily()


def to_gpu(ary: Any) -> Any:
    """Copies an array (any shape, a numeric or boolean dtype) to the device, C-contiguous.

    Raises:
        ArrayError: when ``ary`` is not numeric.
        DependencyError, DeviceError: when the backend asked for is not available; also, whatever the backend but the CPU, in
            a process made by fork after its parent had begun to use CUDA.
    """
    try:
        content = np.array(ary, order="C", copy=True, subok=False)
    except ValueError as error:
        raise ArrayError(f"to_gpu needs an array or what NumPy makes one of; got {type(ary).__name__}: {error}") from error
    if content.dtype.kind not in "fiub" and content.dtype.name != "bfloat16":
        raise ArrayError(f"to_gpu needs numbers; got {type(ary).__name__} of dtype {content.dtype}")
    family = _family()
    if isinstance(family, CPUArrayFamily):
        return family.wrap(content)
    array = family.empty(content.shape, content.dtype)
    family.set(array, content)
    return array


def empty(shape: int | tuple[int, ...], dtype: Any = np.float32) -> Any:
    """A new array with whatever content its memory happens to have. Errors as :func:`to_gpu`."""
    return _family().empty(_shape(shape), _dtype(dtype))


def zeros(shape: int | tuple[int, ...], dtype: Any = np.float32) -> Any:
    """A new array of zeros. Errors as :func:`to_gpu`."""
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
    """The dtypes that parameters may have, each with a fitting absolute tolerance for comparing results."""
    return [(np.float32, 1e-5), (np.float16, 1e-2), (np.float64, 1e-12)]


class SharedArray(arrays.SharedArray):
    """:class:`puzzlelib_rmsprop.arrays.SharedArray` where ``Config.backend`` says, unless a family is given.

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
        """Asks for an array of ``shape`` under ``name``. Raises ArrayError for another dtype or a name twice."""
        if not isinstance(name, str):
            raise ArrayError(f"the name of an array must be text; got {name!r}")
        super().register(_shape(shape), _dtype(dtype), name)


class Stream:
    """A queue of device work. The CPU's is always empty: what was asked for is done when the call returns."""

    def synchronize(self) -> None:
        """Waits until the queue is empty."""


class StreamManager:
    """Lends streams and takes them back, as PuzzleLib's: on CUDA ``pycuda.driver.Stream``, of the current context.

    Example:
        >>> from puzzlelib_rmsprop import gpuarray
        >>> streams = gpuarray.streamManager.borrow(2)
        >>> gpuarray.streamManager.give(streams)
    """

    def __init__(self) -> None:
        # by the context they belong to; None is the CPU's
        self._free: dict[Any, list[Any]] = {}
        self._lent: dict[int, tuple[Any, Any]] = {}

    def borrow(self, nitems: int) -> list[Any]:
        """``nitems`` streams that nobody else uses until they are given back. Errors as :func:`to_gpu`."""
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
        """Takes borrowed streams back. Raises SetupError for one that is not lent."""
        for stream in items:
            if id(stream) not in self._lent:
                raise SetupError(f"give() takes back streams that borrow() lent; got {stream!r}")
            home, _ = self._lent.pop(id(stream))
            self._free[home].append(stream)

    def clear(self) -> None:
        """Forgets the streams that are not lent."""
        for free in self._free.values():
            free.clear()


streamManager = StreamManager()
