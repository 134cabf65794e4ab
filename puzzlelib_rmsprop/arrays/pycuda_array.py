"""``pycuda.gpuarray.GPUArray``: GPU memory in a context that PyCUDA created or shares."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..kernels.context import explained
from .cuda_family import CUDAFamily
from .family import FLOATS

__all__ = ["PyCUDAFamily"]


class PyCUDAFamily(CUDAFamily):
    """PyCUDA arrays. Recognized only if the user has imported PyCUDA."""

    name = "pycuda.gpuarray.GPUArray"
    dtypes = FLOATS

    @classmethod
    def of(cls, array: Any) -> PyCUDAFamily | None:
        module = sys.modules.get("pycuda.gpuarray")
        return cls() if module is not None and isinstance(array, module.GPUArray) else None

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def contiguous(self, array: Any) -> bool:
        return array.flags.c_contiguous

    def address(self, array: Any) -> int:
        return int(array.gpudata) if array.size else 0

    @explained
    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        from pycuda import gpuarray

        return gpuarray.empty(shape, dtype)

    def view(self, flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
        from pycuda import gpuarray

        dtype = self.dtype(flat)
        address = self.address(flat) + offset * dtype.itemsize
        return gpuarray.GPUArray(shape, dtype, base=flat, gpudata=address)
