"""What runs the update rule: :mod:`.cpu` on the CPU, ``rmsprop_graves.cu`` on a GPU. Loaded at the first update."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["CLIP", "DECAY", "LASSO", "MAX_OPS", "PLAIN", "RECORD", "SCALE", "Extras", "Judge", "Op", "Row", "state_dtype"]


class Row(NamedTuple):
    """One variable, or one stretch of a flat buffer: addresses in bytes and the number of elements.

    Attributes:
        master: address of a float32 copy of a 16-bit parameter; 0 where there is none. All rows of a table alike.
        first: index, within its variable, of the row's first element; with ``key`` it names the element's random numbers.
        key: 32 bits that name the variable.
    """

    param: int
    grad: int
    mg: int
    ms: int
    delta: int
    size: int
    master: int = 0
    first: int = 0
    key: int = 0


SCALE, CLIP, DECAY, LASSO = range(4)
MAX_OPS = 8


class Op(NamedTuple):
    """What is done to a gradient on its way into the rule, in the dtype of the arithmetic; ``wc`` is the row's.

    SCALE: times ``value``, and times the float64 at ``address``, where that is not 0. CLIP: at least ``value`` and at most
    ``other``; NaN stays. DECAY: plus ``value * wc`` times the parameter, where wc is above 0. LASSO: the same with the
    parameter's sign.
    """

    kind: int
    value: float
    other: float = 0.0
    address: int = 0


class Extras(NamedTuple):
    """What a step does besides the rule.

    Attributes:
        ops: at most ``MAX_OPS``, in order.
        zeroGrad: write zeros to the gradient after it was read.
        skip: address of a uint32 in the arrays' memory; where it is not 0, nothing is updated, though zeroGrad still zeroes.
        seed: two 32-bit numbers of the step, for random rounding.
    """

    ops: tuple[Op, ...] = ()
    zeroGrad: bool = False
    skip: int = 0
    seed: tuple[int, int] = (0, 0)


PLAIN = Extras()


# What a survey of the gradients finds and keeps, in the arrays' memory: ``bad`` is 1 where a gradient is not finite,
# ``factor`` brings the norm to the limit, ``unscale`` is 1/scale of the step, and ``scale`` that of the next one.
RECORD = np.dtype(
    [(name, np.float64) for name in ("sumsq", "norm", "factor", "scale", "unscale")]
    + [("bad", np.uint32), ("good", np.uint32), ("skipped", np.uint64)]
)


class Judge(NamedTuple):
    """What a survey makes of its sums: the norm to clip to, how a loss scale moves (``interval`` 0: not at all)."""

    limit: float = math.inf
    growth: float = 1.0
    backoff: float = 1.0
    interval: int = 0
    least: float = 2.0**-24
    most: float = 2.0**24


def state_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the arithmetic, and of the state by default: float64 for float64 parameters, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
