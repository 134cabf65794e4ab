"""PuzzleLib's ``CPUArray``, without importing PuzzleLib: a wrapper with the NumPy array in ``.data``."""

from __future__ import annotations

from typing import Any

import numpy as np

from .family import HostFamily

__all__ = ["PuzzleLibCPUFamily"]


class PuzzleLibCPUFamily(HostFamily):
    """PuzzleLib's ``CPU.CPUArray.CPUArray`` or a subclass, recognized by the class name and its ``data``."""

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
        return array.data  # it can be replaced

    def fault(self, array: Any) -> str | None:
        # the wrapper keeps its first shape and dtype even if its data is replaced
        if (tuple(array.shape), array.dtype) != (array.data.shape, array.data.dtype):
            return (
                f"must hold an array of its own shape and dtype, {tuple(array.shape)} and {array.dtype}; its data has "
                f"{array.data.shape} and {array.data.dtype}"
            )
        return super().fault(array)

    def host(self, array: Any) -> np.ndarray:
        return array.data

    def wrap(self, content: np.ndarray) -> Any:
        # without acquire=True PuzzleLib copies the array
        return self._type(content.shape, content.dtype, data=content, acquire=True)
