"""What runs the update rule: :mod:`.cpu` on the CPU, ``rmsprop_graves.cu`` on a GPU. Loaded at the first update."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Row", "state_dtype"]


class Row(NamedTuple):
    """One variable, or one stretch of a flat buffer: addresses in bytes and the number of elements."""

    param: int
    grad: int
    mg: int
    ms: int
    delta: int
    size: int


def state_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the arithmetic and of the state: float64 for float64 parameters, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
