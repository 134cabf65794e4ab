"""Plain NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from .family import HostFamily

__all__ = ["NumpyFamily"]


class NumpyFamily(HostFamily):
    """``numpy.ndarray`` and ``numpy.memmap``. Other subclasses, such as masked arrays, may interpret memory differently."""

    name = "numpy.ndarray"
    cast: str | None = "array.astype({!r})"
    as_real: str | None = "array.view(array.real.dtype)"

    @classmethod
    def of(cls, array: Any) -> NumpyFamily | None:
        return cls() if type(array) in (np.ndarray, np.memmap) else None

    def host(self, array: Any) -> np.ndarray:
        return array

    def wrap(self, content: np.ndarray) -> np.ndarray:
        return content
