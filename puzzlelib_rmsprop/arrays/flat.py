"""Many arrays in one flat buffer."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from ..errors import ArrayError
from .cpu_array import CPUArrayFamily
from .family import Family

__all__ = ["ByDtype", "SharedArray", "in_use"]

ALIGNMENT = 64  # bytes; parts of a buffer are aligned to a cache line, which suits the widest GPU loads too


class ByDtype(dict):
    """A dict keyed by ``np.dtype`` that also accepts scalar types as keys: PuzzleLib's backends use both.

    Example:
        >>> import numpy as np
        >>> ByDtype({np.dtype(np.float32): 1})[np.float32]
        1
    """

    def __missing__(self, key: Any) -> Any:
        dtype = self._key(key)
        if dtype is key or not dict.__contains__(self, dtype):
            raise KeyError(key)
        return self[dtype]

    def __contains__(self, key: object) -> bool:
        return dict.__contains__(self, self._key(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(self._key(key), value)

    def get(self, key: Any, default: Any = None) -> Any:
        """Returns the value for a dtype or scalar type, or ``default``."""
        return super().get(self._key(key), default)

    @staticmethod
    def _key(key: Any) -> Any:
        return np.dtype(key) if isinstance(key, type) and issubclass(key, np.generic) else key


class SharedArray:
    """One flat buffer that holds several named arrays, like PuzzleLib's ``SharedArray``. It is filled with zeros.

    Args:
        dtype: dtype of the buffer and of every array in it.
        family: array family of the buffer; the library's own CPU arrays by default.

    Attributes:
        ary: the flat buffer, 1-d; None before :meth:`build`.
        offsets: maps each name to the index of its first element in ``ary``; filled by :meth:`build`.
        alignment: alignment of each array, in bytes; set by :meth:`build`.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import gpuarray
        >>> shared = gpuarray.SharedArray(np.float32)
        >>> shared.register((2, 3), np.float32, "W")
        >>> shared.register((3,), np.float32, "b")
        >>> shared.build()
        >>> shared.ary.shape, shared["W"].shape
        ((9,), (2, 3))
    """

    def __init__(self, dtype: Any = np.float32, family: Family | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.family = family if family is not None else CPUArrayFamily()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.offsets: dict[str, int] = {}
        self.blocks: dict[str, Any] = {}
        self.ary: Any = None
        self.alignment = self.family.alignment

    def register(self, shape: tuple[int, ...], dtype: Any, name: str) -> None:
        """Registers an array of ``shape`` as ``name``.

        Raises:
            ArrayError: if ``dtype`` is not the buffer's, the name is taken or the buffer is built already.
        """
        if np.dtype(dtype) != self.dtype:
            raise ArrayError(f"{name!r} must be of the buffer's dtype {self.dtype}; got {np.dtype(dtype)}")
        if name in self.shapes:
            raise ArrayError(f"{name!r} is registered already")
        if self.ary is not None:
            raise ArrayError(f"{name!r} cannot be registered: the buffer is built already")
        self.shapes[name] = tuple(shape)

    def build(self, parts: int = 1, multiple: int = 1) -> None:
        """Allocates the buffer, with the arrays in the order of their registration.

        Args:
            parts: pad the buffer so that it can be divided into this number of equal, aligned parts.
            multiple: let each array begin at a multiple of this number of elements, a power of two.
        """
        self.alignment = max(self.alignment, multiple * self.dtype.itemsize)
        self.offsets, size = layout(self.shapes, self.dtype, self.alignment)
        if parts > 1:
            step = parts * max(multiple, ALIGNMENT // self.dtype.itemsize)
            size = -(-size // step) * step
        self.ary = self.family.zeros((size,), self.dtype)
        self.blocks = {name: self.family.view(self.ary, self.offsets[name], shape) for name, shape in self.shapes.items()}
        _BUILT.add(self)

    def __getitem__(self, name: str) -> Any:
        return self.blocks[name]


_BUILT: weakref.WeakSet[SharedArray] = weakref.WeakSet()


def in_use(array: Any) -> bool:
    """Returns whether an array is part of a flat buffer that is still alive."""
    return any(array is block for shared in _BUILT for block in shared.blocks.values())


def layout(shapes: dict[str, tuple[int, ...]], dtype: np.dtype, alignment: int) -> tuple[dict[str, int], int]:
    """Returns each array's offset in a flat buffer, and the buffer's size, in elements. ``alignment`` is in bytes."""
    step = max(1, alignment // dtype.itemsize)
    offsets, size = {}, 0
    for name, shape in shapes.items():
        offsets[name] = size
        size += -(-int(np.prod(shape, dtype=np.int64)) // step) * step
    return offsets, size
