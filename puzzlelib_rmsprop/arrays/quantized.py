"""8-bit state: codes and scales in arrays of any family, read and written as float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import ArrayError
from ..kernels import STATE, int8_state
from ..kernels.layout import BLOCK
from .family import Family

__all__ = ["QuantizedArray", "QuantizedFamily"]

_UINT8 = np.dtype(np.uint8)


class QuantizedArray:
    """Quantized optimizer state (``stateDtype="int8"``): 8-bit codes in blocks of 64 elements that share a scale.

    The arrays of one variable, ``mg``, ``variance`` and ``delta``, are made together by :meth:`zeros` and share one array of
    scales.

    Attributes:
        entity: ``"mg"``, ``"variance"`` or ``"delta"``.
        codes: the codes: uint8, of shape :attr:`shape`.
        scales: the scales: uint8, 1-d; for each block those of mg, variance and delta.
        shape: the shape of the array.
        size: the number of elements.
        dtype: float32, the dtype that :meth:`get` returns.
        nbytes: size of the codes and of this entity's scales, in bytes.

    Example:
        >>> import numpy as np
        >>> from puzzlelib_rmsprop import RMSPropGraves, Variable
        >>> optimizer = RMSPropGraves(stateDtype="int8")
        >>> optimizer.setupOn({"w": Variable(np.zeros(64, np.float32))})
        >>> optimizer.states["w"]["mg"].nbytes
        65
        >>> optimizer.states["w"]["mg"].set(np.ones(64, np.float32))
        >>> float(optimizer.states["w"]["mg"].get().sum())
        64.0
    """

    dtype = np.dtype(np.float32)

    def __init__(self, entity: str, codes: Any, scales: Any, family: Family) -> None:
        self.entity, self.codes, self.scales, self._family = entity, codes, scales, family
        self.shape = family.shape(codes)
        self.size = family.size(codes)
        self.nbytes = self.size + int8_state.blocks_of(self.size)

    @classmethod
    def zeros(cls, family: Family, shape: tuple[int, ...]) -> dict[str, Any]:
        """Returns zero state for a variable of ``shape``, in arrays of ``family``: a dict of entity name to array."""
        scales = family.zeros((int8_state.blocks_of(math.prod(shape)) * len(STATE),), _UINT8)
        return {entity: cls(entity, family.zeros(shape, _UINT8), scales, family) for entity in STATE}

    def view(self, offset: int, shape: tuple[int, ...]) -> QuantizedArray:
        """Returns a view, of ``shape``, of the elements of a 1-d array from ``offset`` on.

        Raises:
            ArrayError: if ``offset`` is not a multiple of the block size, 64.
        """
        if offset % BLOCK:
            raise ArrayError(f"a view of 8-bit state must begin with a block of {BLOCK} elements; got offset {offset}")
        count = int8_state.blocks_of(math.prod(shape)) * len(STATE)
        scales = self._family.view(self.scales, offset // BLOCK * len(STATE), (count,))
        return QuantizedArray(self.entity, self._family.view(self.codes, offset, shape), scales, self._family)

    def get(self) -> np.ndarray:
        """Returns the dequantized values in a new NumPy array of float32."""
        scales = self._family.get(self.scales).reshape(-1, len(STATE))[:, STATE.index(self.entity)]
        return int8_state.decoded(self._family.get(self.codes).reshape(-1), scales, self.entity).reshape(self.shape)

    def set(self, content: np.ndarray) -> None:
        """Quantizes ``content``, a NumPy array of the same shape, into this array; values are rounded to nearest.

        Raises:
            ArrayError: if the shapes differ.
        """
        if content.shape != self.shape:
            raise ArrayError(f"cannot copy an array of shape {content.shape} into one of shape {self.shape}")
        codes, scales = int8_state.encoded(content.astype(np.float32, copy=False).reshape(-1), self.entity)
        kept = self._family.get(self.scales).reshape(-1, len(STATE))
        kept[:, STATE.index(self.entity)] = scales
        self._family.set(self.scales, kept.reshape(-1))
        self._family.set(self.codes, codes.reshape(self.shape))

    def __repr__(self) -> str:
        return f"QuantizedArray({self.entity!r}, shape={self.shape})"


class QuantizedFamily(Family):
    """8-bit state whose codes and scales are arrays of the family ``base``."""

    dtypes = ()

    def __init__(self, base: Family) -> None:
        self.base, self.name, self.device, self.alignment = base, f"8-bit {base.name}", base.device, base.alignment

    @classmethod
    def of(cls, array: Any) -> QuantizedFamily | None:
        return cls(array._family) if type(array) is QuantizedArray else None

    def fault(self, array: Any) -> str | None:
        return self.base.fault(array.codes) or self.base.fault(array.scales)

    def view(self, flat: Any, offset: int, shape: tuple[int, ...]) -> Any:
        return flat.view(offset, shape)

    def get(self, array: Any) -> np.ndarray:
        return array.get()

    def set(self, array: Any, content: np.ndarray) -> None:
        array.set(content)
