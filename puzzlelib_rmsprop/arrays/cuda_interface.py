"""Arrays with ``__cuda_array_interface__``, versions 2 and 3: Numba's device arrays, and those of other libraries.

The library cannot create arrays of an unknown type. State and gradients that it allocates for such variables are PyCUDA
arrays. In global mode the net's own arrays are replaced by PyCUDA arrays that are views of the flat buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArrayError
from ..kernels.context import ensure_context
from ..validation import immutable
from .cuda_family import ForeignCUDAFamily
from .family import Family
from .pycuda_array import PyCUDAFamily

__all__ = ["CUDAInterfaceFamily"]


class _Description(NamedTuple):
    """The parsed interface. ``stream`` is a handle, 0 for the default stream, or None if no synchronization is needed."""

    shape: tuple[int, ...]
    dtype: np.dtype
    address: int
    strides: tuple[int, ...] | None
    readonly: bool
    masked: bool
    stream: int | None


class CUDAInterfaceFamily(ForeignCUDAFamily, PyCUDAFamily):
    """GPU arrays of another library. A net may hold PyCUDA arrays as well.

    Work is ordered with the streams that the arrays name. PyCUDA arrays and arrays of version 2 name none, and count as
    users of the default stream. An array of version 3 may ask for no synchronization; if all do, the default stream is used.
    """

    name = "array with __cuda_array_interface__"
    contiguous_copy = "copy it with its library"

    @classmethod
    def of(cls, array: Any) -> CUDAInterfaceFamily | None:
        if isinstance(array, type) or immutable(array):
            return None
        try:
            _described(array)
        except AttributeError:
            return None
        return cls()

    def takes(self, other: Family) -> bool:
        return isinstance(other, PyCUDAFamily)

    def handles(self, arrays: Iterable[Any]) -> Iterable[int]:
        return {stream for array in arrays if (stream := _described(array).stream) is not None}

    def dtype(self, array: Any) -> np.dtype:
        return _described(array).dtype

    def shape(self, array: Any) -> tuple[int, ...]:
        return _described(array).shape

    def size(self, array: Any) -> int:
        return int(np.prod(self.shape(array), dtype=np.int64))

    def nbytes(self, array: Any) -> int:
        return self.size(array) * self.dtype(array).itemsize

    def strides(self, array: Any) -> tuple[int, ...] | None:
        return _described(array).strides

    def memory(self, array: Any) -> tuple[Any, ...] | None:
        return None if PyCUDAFamily.of(array) else tuple(_described(array)[:-1])

    def contiguous(self, array: Any) -> bool:
        ensure_context()
        shape, dtype, _, strides, *_ = _described(array)
        if strides is None or 0 in shape:
            return True
        step = dtype.itemsize
        for length, stride in zip(reversed(shape), reversed(strides), strict=True):
            if length > 1 and stride != step:
                return False
            step *= length
        return True

    def address(self, array: Any) -> int:
        return _described(array).address if self.size(array) else 0

    def fault(self, array: Any) -> str | None:
        described = _described(array)
        if described.readonly:
            return "must be writeable; it is read-only: copy it with its library"
        if described.masked:
            return "must not have a mask: fill the masked elements with its library"
        return super().fault(array)


def _described(array: Any) -> _Description:
    """Returns the parsed interface of an array. Raises ArrayError if it does not follow the protocol."""
    if PyCUDAFamily.of(array) is not None:
        address = int(array.gpudata) if array.size else 0
        return _Description(tuple(array.shape), array.dtype, address, tuple(array.strides), False, False, 0)
    whose = f"the __cuda_array_interface__ of a {type(array).__qualname__}"
    try:
        said = array.__cuda_array_interface__
    except AttributeError:
        raise
    except Exception as error:
        raise ArrayError(f"{whose} cannot be read: {error}") from error
    if not isinstance(said, Mapping):
        raise ArrayError(f"{whose} must be a dict; got {said!r}")
    try:
        version, stream, mask = int(said["version"]), said.get("stream"), said.get("mask")
        shape, dtype, (address, readonly) = tuple(map(int, said["shape"])), np.dtype(said["typestr"]), said["data"]
        strides = None if said.get("strides") is None else tuple(map(int, said["strides"]))
        address = 0 if address is None else int(address)
    except (KeyError, TypeError, ValueError) as error:
        raise ArrayError(f"{whose} must have shape, typestr, data and version; got {dict(said)!r}: {error}") from error
    if version < 2:
        raise ArrayError(f"{whose} must have version 2 or 3; got {version}")
    if strides is not None and len(strides) != len(shape):
        raise ArrayError(f"{whose} must have a stride for each dimension; got {strides} for shape {shape}")
    if version == 2:
        stream = 0  # version 2 names no stream
    elif stream is not None and (not isinstance(stream, int) or isinstance(stream, bool) or stream < 1):
        raise ArrayError(
            f"{whose} must have as stream None, 1 (the default), 2 (the per-thread default) or a handle; got {stream!r}"
        )
    own = getattr(array, "dtype", None)
    if dtype.kind == "V" and isinstance(own, np.dtype) and own.itemsize == dtype.itemsize:
        dtype = own  # bfloat16 has no typestr
    return _Description(shape, dtype, address, strides, bool(readonly), mask is not None, stream)
