"""The memory of arrays that a transport gets: read and written in pieces, or used in place if it is on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import family_of
from ..arrays.family import FLOATS, HostFamily
from ..errors import ArrayError

__all__ = ["DeviceMemory", "Memory", "averaged", "memory_of", "pinned"]


class Memory:
    """A flat array on the host.

    Attributes:
        address: address of the first element.
        size: number of elements.
        dtype: dtype of the elements.
        host: a NumPy view; None on a GPU.
    """

    def __init__(self, address: int, size: int, dtype: np.dtype, host: np.ndarray | None) -> None:
        self.address, self.size, self.dtype, self.host = address, size, dtype, host

    def read(self, begin: int, target: np.ndarray) -> None:
        """Copies elements from ``begin`` on into ``target``. On a GPU the copy is complete after :meth:`settle`."""
        assert self.host is not None
        target[:] = self.host[begin : begin + len(target)]

    def write(self, begin: int, content: np.ndarray) -> None:
        """Copies ``content`` to the elements from ``begin`` on. On a GPU it must not change before :meth:`settle`."""
        assert self.host is not None
        self.host[begin : begin + len(content)] = content

    def settle(self) -> None:
        """Waits for queued copies."""


class DeviceMemory(Memory):
    """A flat array on a GPU, read and written on a stream."""

    def __init__(self, address: int, size: int, dtype: np.dtype, stream: Any) -> None:
        super().__init__(address, size, dtype, None)
        self._stream = stream

    def read(self, begin: int, target: np.ndarray) -> None:
        from pycuda import driver

        if target.size:
            # as bytes: PyCUDA does not accept bfloat16 buffers
            driver.memcpy_dtoh_async(target.view(np.uint8), self.address + begin * self.dtype.itemsize, self._stream)

    def write(self, begin: int, content: np.ndarray) -> None:
        from pycuda import driver

        if content.size:
            driver.memcpy_htod_async(self.address + begin * self.dtype.itemsize, content.view(np.uint8), self._stream)

    def settle(self) -> None:
        from pycuda import driver

        if self._stream is None:
            driver.Context.synchronize()
        else:
            self._stream.synchronize()


def memory_of(buffer: Any, stream: Any = None) -> Memory:
    """Returns the flat memory of an array of any family, or of PuzzleLib's ``gpudata`` (bytes on a GPU).

    Raises:
        ArrayError: if ``buffer`` is neither, or cannot be used in place.
    """
    if isinstance(getattr(buffer, "ptr", None), int) and not hasattr(buffer, "dtype"):
        return DeviceMemory(buffer.ptr, int(buffer.size), np.dtype(np.uint8), stream)
    family = family_of(buffer)
    fault = family.fault(buffer)
    if fault is not None:
        raise ArrayError(f"an array for a group of processes {fault}")
    if isinstance(family, HostFamily):
        host = np.asarray(family.host(buffer)).reshape(-1)
        return Memory(host.ctypes.data, host.size, host.dtype, host)
    return DeviceMemory(family.address(buffer), family.size(buffer), family.dtype(buffer), stream)


def averaged(memory: Memory) -> Memory:
    """Returns ``memory``, after a check of its dtype: a mean of integers would be truncated.

    Raises:
        ArrayError: if the dtype is not a floating-point dtype.
    """
    if memory.dtype.name not in FLOATS:
        raise ArrayError(f"an array to average must be of dtype {', '.join(FLOATS)}; got {memory.dtype}")
    return memory


def pinned(nbytes: int) -> np.ndarray:
    """Returns pinned host memory: a GPU copies from and to it directly."""
    from pycuda import driver

    return driver.pagelocked_empty(nbytes, np.uint8)
