"""CPU arrays with ``__dlpack__`` that NumPy can view without a copy.

The library cannot create arrays of an unknown type. State and gradients that it allocates for such variables are NumPy
arrays. In global mode the net's own arrays are replaced by NumPy arrays that are views of the flat buffers.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..errors import ArrayError
from ..validation import immutable
from .family import Family
from .numpy_array import NumpyFamily

__all__ = ["DLPackFamily"]

_ON_THE_HOST = (1, 3, 11, 13)  # DLPack's device types: CPU, pinned memory of CUDA and ROCm, managed memory of CUDA
_CUDA = 2
# before 2.1 NumPy has no copy=False, and its views are read-only
_NO_COPY: Any = {"copy": False} if np.lib.NumpyVersion(np.__version__) >= "2.1.0" else {}


class DLPackFamily(NumpyFamily):
    """Arrays of another library that NumPy can view. A net may hold NumPy arrays as well."""

    name = "CPU array with __dlpack__"
    dtypes = ("float16", "float32", "float64")  # NumPy cannot import bfloat16 through DLPack
    cast, as_real = None, None

    @classmethod
    def of(cls, array: Any) -> DLPackFamily | None:
        kind = type(array)
        if isinstance(array, type | np.ndarray) or not hasattr(kind, "__dlpack__") or immutable(array):
            return None
        device = _device(array)
        if device not in _ON_THE_HOST:
            where = "a CUDA device, without __cuda_array_interface__" if device == _CUDA else f"DLPack device type {device}"
            raise ArrayError(
                f"an array with __dlpack__ must be in memory that NumPy can view; this {kind.__qualname__} is on {where}: "
                f"copy it to the CPU"
            )
        return cls()

    def takes(self, other: Family) -> bool:
        return isinstance(other, NumpyFamily)

    def host(self, array: Any) -> np.ndarray:
        return array if isinstance(array, np.ndarray) else _viewed(array)

    def dtype(self, array: Any) -> np.dtype:
        return self.host(array).dtype

    def shape(self, array: Any) -> tuple[int, ...]:
        return self.host(array).shape

    def size(self, array: Any) -> int:
        return self.host(array).size

    def nbytes(self, array: Any) -> int:
        return self.host(array).nbytes

    def memory(self, array: Any) -> tuple[Any, ...] | None:
        if isinstance(array, np.ndarray):
            return None
        host = self.host(array)
        return host.ctypes.data, host.shape, host.dtype.str, host.strides, host.flags.writeable

    def fault(self, array: Any) -> str | None:
        if isinstance(array, np.ndarray):
            return super().fault(array)
        host, again = self.host(array), self.host(array)
        if host.size and host.ctypes.data != again.ctypes.data:
            return "exports a copy through __dlpack__, and a step would write into the copy: use numpy.array(array)"
        if not host.flags.writeable:
            return (
                "must be writeable; its DLPack export is read-only, or does not say so, as before DLPack 1.0 and NumPy 2.1: "
                "use numpy.array(array)"
            )
        if not host.flags.c_contiguous:
            return f"must be C-contiguous; its strides are {host.strides} for shape {host.shape}: copy it with its library"
        return super().fault(array)


def _device(array: Any) -> int:
    try:
        return int(array.__dlpack_device__()[0])
    except Exception as error:
        raise ArrayError(
            f"a {type(array).__qualname__} with __dlpack__ needs a working __dlpack_device__: {error}"
        ) from error


def _viewed(array: Any) -> np.ndarray:
    """Returns a NumPy view of an array's memory. Raises ArrayError if its library or NumPy cannot make one."""
    view = functools.partial(np.from_dlpack, array)
    try:
        try:
            return view(**_NO_COPY)
        except TypeError:  # a library with DLPack before 1.0 does not accept copy=
            return view()
    except Exception as error:
        raise ArrayError(
            f"NumPy cannot view a {type(array).__qualname__} through DLPack without a copy: {error}. Use numpy.array(array)"
        ) from error
