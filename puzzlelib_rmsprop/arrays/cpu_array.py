"""The library's own CPU array: an ``ndarray`` with PuzzleLib's array methods."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ArrayError
from .family import HostFamily

__all__ = ["CPUArray", "CPUArrayFamily"]


class CPUArray(np.ndarray):
    """A NumPy array with PuzzleLib's ``get``, ``set`` and ``ptr``. Everything else works as in NumPy.

    Created by :mod:`puzzlelib_rmsprop.gpuarray` (``to_gpu``, ``empty``, ``zeros``), with any shape and dtype.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import gpuarray
        >>> a = gpuarray.to_gpu(np.arange(3, dtype=np.float32))
        >>> (a + 1).get()
        array([1., 2., 3.], dtype=float32)
    """

    @property
    def ptr(self) -> int:
        """Address of the first element."""
        return self.ctypes.data

    def get(self) -> np.ndarray:
        """Returns a copy as a plain ``ndarray`` of the same shape and dtype."""
        return np.array(self, copy=True, subok=False)

    def set(self, ary: Any) -> None:
        """Copies ``ary``, an array of the same shape, into this one. Its elements are converted to this array's dtype.

        Raises:
            ArrayError: if the shapes differ, or the dtypes are of different kinds.
        """
        content = np.asarray(ary)
        if content.shape != self.shape:
            raise ArrayError(f"set() needs an array of shape {self.shape}; got {content.shape}")
        # to NumPy, bfloat16 is a kind of its own
        floats = self.dtype.name == "bfloat16" and content.dtype.kind in "fiu"
        if not floats and not np.can_cast(content.dtype, self.dtype, "same_kind"):
            raise ArrayError(f"set() cannot convert {content.dtype} to {self.dtype}")
        np.copyto(self, content, casting="unsafe")


class CPUArrayFamily(HostFamily):
    """The family of :class:`CPUArray`."""

    name = "puzzlelib_rmsprop.CPUArray"
    cast, as_real = "array.astype({!r})", "array.view(array.real.dtype)"

    @classmethod
    def of(cls, array: Any) -> CPUArrayFamily | None:
        return cls() if isinstance(array, CPUArray) else None

    def host(self, array: Any) -> np.ndarray:
        return array

    def wrap(self, content: np.ndarray) -> CPUArray:
        return content.view(CPUArray)
