"""The memory behind what a transport is handed: read and written in pieces, or used in place where it is the host's."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import family_of
from ..arrays.family import FLOATS, HostFamily
from ..errors import ArrayError

__all__ = ["DeviceMemory", "Memory", "averaged", "memory_of", "pinned"]


class Memory:
    """A flat array of the host.

    Attributes:
        address: of the first element, in bytes.
        size, dtype: number and dtype of the elements.
        host: the NumPy array, not a copy; None on a GPU.
    """

    def __init__(self, address: int, size: int, dtype: np.dtype, host: np.ndarray | None) -> None:
        self.address, self.size, self.dtype, self.host = address, size, dtype, host

    def read(self, begin: int, target: np.ndarray) -> None:
        """Copies elements from ``begin`` on into ``target``; on a GPU they are there after :meth:`settle`."""
        assert self.host is not None
        target[:] = self.host[begin : begin + len(target)]

    def write(self, begin: int, content: np.ndarray) -> None:
        """Copies ``content`` to the elements from ``begin`` on; on a GPU it must stay as it is until :meth:`settle`."""
        assert self.host is not None
        self.host[begin : begin + len(content)] = content

    def settle(self) -> None:
        """Waits for what was queued."""


class DeviceMemory(Memory):
    """A flat array on a GPU, read and written in the order of a stream."""

    def __init__(self, address: int, size: int, dtype: np.dtype, stream: Any) -> None:
        super().__init__(address, size, dtype, None)
        self._stream = stream

    def read(self, begin: int, target: np.ndarray) -> None:
        from pycuda import driver

        if target.size:
            # as bytes: PyCUDA's buffers know no bfloat16
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
    """The memory of an array of any family, flat, or of PuzzleLib's ``gpudata`` (bytes of a GPU).

    Raises:
        ArrayError: it is none of these, or cannot be worked on in place.
    """
    if isinstance(getattr(buffer, "ptr", None), int) and not hasattr(buffer, "dtype"):
        return DeviceMemory(buffer.ptr, int(buffer.size), np.dtype(np.uint8), stream)
    family = family_of(buffer)
    fault = family.fault(buffer)
    if fault is not None:
        raise ArrayError(f"what a group of processes works on {fault}")
    if isinstance(family, HostFamily):
        host = np.asarray(family.host(buffer)).reshape(-1)
        return Memory(host.ctypes.data, host.size, host.dtype, host)
    return DeviceMemory(family.address(buffer), family.size(buffer), family.dtype(buffer), stream)


def averaged(memory: Memory) -> Memory:
    """``memory``, of numbers that have a mean; whole numbers would be cut off.

    Raises:
        ArrayError: of another dtype.
    """
    if memory.dtype.name not in FLOATS:
        raise ArrayError(f"what is averaged must be {', '.join(FLOATS)}; got {memory.dtype}")
    return memory


def pinned(nbytes: int) -> np.ndarray:
    """Bytes of the host that a GPU reads and writes without a copy in between."""
    from pycuda import driver

    return driver.pagelocked_empty(nbytes, np.uint8)
