"""PuzzleLib's ``gpuarray``: arrays for nets and data, on the CPU here.

A script written for PuzzleLib's ``from PuzzleLib.Backend import gpuarray`` runs on it after swapping that import.

Example:
    >>> import numpy as np
    >>> from puzzlelib_rmsprop import gpuarray
    >>> data = gpuarray.to_gpu(np.ones((2, 3), np.float32))
    >>> data.shape, data.dtype
    ((2, 3), dtype('float32'))
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import CPUArray, SharedArray
from .config import Backend, Config
from .errors import ArrayError, ConfigError

__all__ = ["GPUArray", "SharedArray", "StreamManager", "dtypesSupported", "empty", "streamManager", "to_gpu", "zeros"]

#: The class of the arrays made here, for ``isinstance``.
GPUArray = CPUArray


def _array(content: np.ndarray) -> CPUArray:
    if Config.backend is Backend.cuda:
        raise ConfigError("Config.backend is cuda, but this version makes arrays on the CPU only; set it to auto or cpu")
    return content.view(CPUArray)


def to_gpu(ary: Any) -> CPUArray:
    """Copies an array (any shape, a numeric or boolean dtype) to the device, C-contiguous.

    Raises:
        ArrayError: when ``ary`` is not numeric.
        ConfigError: when the backend asked for is not available.
    """
    content = np.array(ary, order="C", copy=True, subok=False)
    if content.dtype.kind not in "fiub":
        raise ArrayError(f"to_gpu needs numbers; got {type(ary).__name__} of dtype {content.dtype}")
    return _array(content)


def empty(shape: int | tuple[int, ...], dtype: Any = np.float32) -> CPUArray:
    """A new array with whatever content its memory happens to have."""
    return _array(np.empty(shape, dtype))


def zeros(shape: int | tuple[int, ...], dtype: Any = np.float32) -> CPUArray:
    """A new array of zeros."""
    return _array(np.zeros(shape, dtype))


def dtypesSupported() -> list[tuple[type, float]]:
    """The dtypes that parameters may have, each with a fitting absolute tolerance for comparing results."""
    return [(np.float32, 1e-5), (np.float16, 1e-2), (np.float64, 1e-12)]


class Stream:
    """A queue of device work. The CPU's is always empty: what was asked for is done when the call returns."""

    def synchronize(self) -> None:
        """Waits until the queue is empty."""


class StreamManager:
    """Lends streams and takes them back, as PuzzleLib's.

    Example:
        >>> from puzzlelib_rmsprop import gpuarray
        >>> streams = gpuarray.streamManager.borrow(2)
        >>> gpuarray.streamManager.give(streams)
    """

    def __init__(self) -> None:
        self._free: list[Stream] = []

    def borrow(self, nitems: int) -> list[Stream]:
        """``nitems`` streams that nobody else uses until they are given back."""
        self._free.extend(Stream() for _ in range(nitems - len(self._free)))
        kept = len(self._free) - nitems
        borrowed, self._free = self._free[kept:], self._free[:kept]
        return borrowed

    def give(self, items: list[Stream]) -> None:
        """Takes borrowed streams back."""
        self._free.extend(items)

    def clear(self) -> None:
        """Forgets the streams that are not lent."""
        self._free.clear()


streamManager = StreamManager()
