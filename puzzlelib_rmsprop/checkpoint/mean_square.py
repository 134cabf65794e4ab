"""PuzzleLib's form of the state: its mean square ``ms`` takes the place of this library's ``variance``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..arrays import dtype_of
from ..kernels import real_dtype

__all__ = ["MeanSquare"]

PIECE = 1 << 15  # elements converted at a time: float64 takes more memory than the state


class MeanSquare:
    """Computes ``ms = variance + mg*mg`` and ``variance = max(ms - mg*mg, 0)``, in float64, then rounded.

    Attributes:
        entity: the entity in the state.
        name: its other form, which files hold beside it.
        beside: the entity that both formulas need.
    """

    entity, name, beside = "variance", "ms", "mg"

    def applies(self, state: Mapping[str, Any]) -> bool:
        """Returns whether a state holds ``entity``, and no separate array named ``name``."""
        return {self.entity, self.beside} <= state.keys() and self.name not in state

    def dtype(self, state: Mapping[str, Any]) -> np.dtype:
        """Returns the dtype of ``ms``: that of the arithmetic, as in PuzzleLib; float32 for 16-bit state."""
        return real_dtype(dtype_of(state[self.entity]))

    def of(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns ``ms``; infinite where it exceeds the range of its dtype."""
        return _pieces(_mean_square, state[self.beside], state[self.entity], self.dtype(state))

    def back(self, state: Mapping[str, np.ndarray], dtype: np.dtype) -> np.ndarray:
        """Returns the variance for an entity of ``dtype``, in float32 or float64; infinities and NaN are kept."""
        return _pieces(_variance, state[self.beside], state[self.name], real_dtype(dtype))


def _mean_square(mg: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return variance + np.square(mg)


def _variance(mg: np.ndarray, ms: np.ndarray) -> np.ndarray:
    return np.maximum(ms - np.square(mg), 0.0)


def _pieces(rule: Callable, mg: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
    found = np.empty(other.shape, dtype)
    flat, mg, other = found.reshape(-1), mg.reshape(-1), other.reshape(-1)
    with np.errstate(all="ignore"):
        for begin in range(0, flat.size, PIECE):
            piece = slice(begin, begin + PIECE)
            flat[piece] = rule(mg[piece].astype(np.float64), other[piece].astype(np.float64))
    return found
