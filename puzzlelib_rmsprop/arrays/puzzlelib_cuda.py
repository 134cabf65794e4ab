"""PuzzleLib's CUDA ``GPUArray``, without importing PuzzleLib: a C type with its address in ``.ptr``.

Its memory is in the primary context of the device, which PyCUDA can share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.context import ensure_context
from .cuda_family import CUDAFamily

__all__ = ["PuzzleLibCUDAFamily"]


class PuzzleLibCUDAFamily(CUDAFamily):
    """PuzzleLib's ``GPUArray``, recognized by the class name and its attributes."""

    dtypes = ("float16", "float32", "float64")

    def __init__(self, array_type: type) -> None:
        self._type: Any = array_type
        self.name = f"{array_type.__module__}.{array_type.__qualname__}"

    @classmethod
    def of(cls, array: Any) -> PuzzleLibCUDAFamily | None:
        kind = next((kind for kind in type(array).__mro__ if kind.__name__ == "GPUArray"), None)
        if kind is None or not all(hasattr(array, name) for name in ("ptr", "gpudata", "contiguous", "device")):
            return None
        return cls(kind)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PuzzleLibCUDAFamily) and self._type is other._type

    def __hash__(self) -> int:
        return hash(self._type)

    def contiguous(self, array: Any) -> bool:
        ensure_context()
        return array.contiguous

    def address(self, array: Any) -> int:
        return int(array.ptr) if array.size else 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return self._type.empty(shape, dtype)

    def view(self, flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
        begin = offset * flat.dtype.itemsize
        nbytes = int(np.prod(shape, dtype=np.int64)) * flat.dtype.itemsize
        # PuzzleLib slices buffers by bytes, and a slice keeps its buffer alive
        return self._type(shape=shape, dtype=flat.dtype, gpudata=flat.gpudata[begin : begin + nbytes])

    def buffer(self, array: Any) -> Any:
        return array.gpudata
