"""CuPy arrays, without importing CuPy. Work on them is ordered with CuPy's current stream."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import ArrayError
from ..kernels.context import ensure_context
from .cuda_family import ForeignCUDAFamily
from .family import FLOATS

__all__ = ["CuPyFamily"]


class CuPyFamily(ForeignCUDAFamily):
    """``cupy.ndarray``, in the primary context of its device, which PyCUDA shares. New arrays are CuPy arrays too."""

    name = "cupy.ndarray"
    dtypes = FLOATS
    cast, as_real = "array.astype({!r})", "array.view(array.real.dtype)"
    contiguous_copy = "cupy.ascontiguousarray(array)"

    @classmethod
    def of(cls, array: Any) -> CuPyFamily | None:
        # another thread may still be importing the module
        kind = getattr(sys.modules.get("cupy"), "ndarray", None)
        return cls() if kind is not None and isinstance(array, kind) else None

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def handles(self, arrays: Iterable[Any]) -> Iterable[int]:
        return (int(sys.modules["cupy"].cuda.get_current_stream().ptr),)

    def contiguous(self, array: Any) -> bool:
        ensure_context()
        return bool(array.flags.c_contiguous)

    def address(self, array: Any) -> int:
        return int(array.data.ptr) if array.size else 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        cupy = sys.modules["cupy"]
        try:
            return cupy.empty(shape, dtype)
        except (TypeError, ValueError) as error:
            raise ArrayError(f"CuPy {cupy.__version__} cannot make arrays of dtype {dtype}: {error}") from error

    def view(self, flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape, dtype=np.int64))
        return flat[offset : offset + size].reshape(shape)
