"""CuPy's arrays, without importing CuPy: worked on in the order of its current stream."""

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
    """``cupy.ndarray``, of the primary context of its device, which PyCUDA shares. What the library makes is CuPy's, too."""

    name = "cupy.ndarray"
    dtypes = FLOATS
    cast, as_real = "array.astype({!r})", "array.view(array.real.dtype)"
    contiguous_copy = "cupy.ascontiguousarray(array)"

    @classmethod
    def of(cls, array: Any) -> CuPyFamily | None:
        # of a module that another thread is importing, not all is there
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
            raise ArrayError(f"CuPy {cupy.__version__} makes no arrays of {dtype}: {error}") from error

    def view(self, flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
        size = int(np.prod(shape, dtype=np.int64))
        return flat[offset : offset + size].reshape(shape)
