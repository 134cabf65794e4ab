"""What runs the update rule: :mod:`.cpu` on the CPU, ``rmsprop_graves.cu`` on a GPU. Loaded at the first update."""

from __future__ import annotations

import numpy as np

__all__ = ["state_dtype"]


def state_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the arithmetic and of the state: float64 for float64 parameters, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
