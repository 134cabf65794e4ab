"""PuzzleLib's ``CPUArray``, without importing PuzzleLib: a wrapper with the NumPy array in ``.data``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .family import HostFamily

__all__ = ["PuzzleLibCPUFamily"]


class PuzzleLibCPUFamily(HostFamily):
    """PuzzleLib's ``CPU.CPUArray.CPUArray``, or a subclass, known by the name of the class and what it holds."""

    dtypes = ("float16", "float32", "float64")

    def __init__(self, array_type: type) -> None:
        self._type = array_type
        self.name = f"{array_type.__module__}.{array_type.__qualname__}"

    @classmethod
    def of(cls, array: Any) -> PuzzleLibCPUFamily | None:
        kind = next((kind for kind in type(array).__mro__ if kind.__name__ == "CPUArray"), None)
        if kind is None or isinstance(array, np.ndarray) or type(getattr(array, "data", None)) is not np.ndarray:
            return None
        return cls(kind)

    def host(self, array: Any) -> np.ndarray:
        return array.data

    def wrap(self, content: np.ndarray) -> Any:
        # acquire=True keeps the array it is given; without it PuzzleLib copies
        return self._type(content.shape, content.dtype, data=content, acquire=True)
