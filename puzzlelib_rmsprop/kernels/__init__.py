"""What runs the update rule: :mod:`.cpu` on the CPU, ``rmsprop_graves.cu`` on a GPU. Loaded at the first update."""

from __future__ import annotations

import numpy as np

__all__ = ["PARAM_DTYPES", "state_dtype"]

#: What parameters and gradients may be of.
PARAM_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def state_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the arithmetic and of the state: float64 for float64 parameters, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
