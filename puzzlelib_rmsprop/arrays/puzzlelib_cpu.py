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

    def memory(self, array: Any) -> np.ndarray:
        return array.data  # the wrapper may be given another

    def fault(self, array: Any) -> str | None:
        # the wrapper says what it was made with, whatever array was put into it since
        if (tuple(array.shape), array.dtype) != (array.data.shape, array.data.dtype):
            return (
                f"must hold an array of its own shape and dtype, {tuple(array.shape)} and {array.dtype}; it holds one of "
                f"{array.data.shape} and {array.data.dtype}"
            )
        return super().fault(array)

    def host(self, array: Any) -> np.ndarray:
        return array.data

    def wrap(self, content: np.ndarray) -> Any:
        # acquire=True keeps the array it is given; without it PuzzleLib copies
        return self._type(content.shape, content.dtype, data=content, acquire=True)
