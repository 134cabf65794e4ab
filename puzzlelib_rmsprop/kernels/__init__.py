"""The update rule on each device: :mod:`.cpu`, :mod:`.cuda`, and :mod:`.reference` (NumPy) if no C++ compiler was available.

Each module provides ``Table`` (segments with an ``update`` method), ``GradientStatistics`` and ``operate``, and is imported
at the first update. This module defines the types of their arguments.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = [
    "CLIP",
    "DECAY",
    "LASSO",
    "LENIENT",
    "PLAIN",
    "RANDOMLY_ROUNDED",
    "SCALE",
    "STATE",
    "Hyper",
    "Operation",
    "ScalingPolicy",
    "Segment",
    "StepOptions",
    "real_dtype",
    "seeds_of",
]


class Segment(NamedTuple):
    """One variable, or one part of a flat buffer. Dtypes are given by name, ``size`` counts elements.

    Attributes:
        dtype: dtype of param and grad: float16, bfloat16, float32 or float64.
        state: dtype of mg, variance and delta: int8, bfloat16, or the dtype of the arithmetic.
        param, grad, mg, variance, delta: addresses of the arrays.
        scales: address of the scales of int8 state (see :mod:`.int8_state`); 0 for other dtypes.
        master: address of the float32 master weights of a 16-bit parameter; 0 for none.
        first: index of the first element within the variable. Random numbers depend on the element's index and ``key``.
        key: 32 bits that identify the variable.
        group: index of the segment's hyper-parameters and options. Groups are numbered from 0.
    """

    dtype: str
    state: str
    param: int
    grad: int
    size: int
    mg: int = 0
    variance: int = 0
    delta: int = 0
    scales: int = 0
    master: int = 0
    first: int = 0
    key: int = 0
    group: int = 0


class Hyper(NamedTuple):
    """The hyper-parameters of a step. ``centered=False`` does not subtract the mean of the gradients."""

    learnRate: float
    alpha: float
    momRate: float
    epsilon: float
    centered: bool = True


STATE = ("mg", "variance", "delta")  # the optimizer state of a variable
RANDOMLY_ROUNDED = ("bfloat16", "int8")  # state dtypes with stochastic rounding, which needs a seed at each step

SCALE, CLIP, DECAY, LASSO = range(4)


class Operation(NamedTuple):
    """An operation on a gradient before the rule reads it, in the dtype of the arithmetic. ``wc`` is the segment's.

    SCALE multiplies by ``value``, and by the float64 at ``address`` unless that is 0. CLIP clips to ``value`` (minimum) and
    ``other`` (maximum) and keeps NaN. DECAY adds ``value * wc`` times the parameter if wc > 0. LASSO adds ``value * wc``
    times the sign of the parameter if wc > 0.
    """

    kind: int
    value: float
    other: float = 0.0
    address: int = 0


class StepOptions(NamedTuple):
    """Options of a step in addition to the hyper-parameters.

    Attributes:
        operations: operations on the gradients, in order; at most 8.
        zeroGrad: set gradients to zero after reading them.
        skip: address of a uint32 in the memory of the arrays' device, or 0. If that number is not 0, nothing is updated, but
            zeroGrad still applies.
        seed: two 32-bit numbers for the stochastic rounding of this step.
        decay: decoupled weight decay: if wc > 0, the step also subtracts ``|learnRate| * decay * wc`` times the parameter,
            where learnRate includes the segment's factor. Gradients and state are not affected.
    """

    operations: tuple[Operation, ...] = ()
    zeroGrad: bool = False
    skip: int = 0
    seed: tuple[int, int] = (0, 0)
    decay: float = 0.0


PLAIN = StepOptions()


class ScalingPolicy(NamedTuple):
    """The gradient norm to clip to, and how the loss scale changes (``interval=0``: it is constant)."""

    limit: float = math.inf
    growth: float = 1.0
    backoff: float = 1.0
    interval: int = 0
    least: float = 2.0**-24
    most: float = 2.0**24


LENIENT = ScalingPolicy()  # no clipping, constant scale


def real_dtype(dtype: np.dtype | str) -> np.dtype:
    """Returns the dtype of the arithmetic for parameters of ``dtype``, which is also the default dtype of the state."""
    return np.dtype(np.float64 if str(dtype) == "float64" else np.float32)


def seeds_of(seed: int, t: int) -> tuple[int, int]:
    """Returns two 32-bit numbers for the stochastic rounding of step ``t``: output number ``t`` of SplitMix64(``seed``)."""
    z = (seed + t * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    return z & 0xFFFFFFFF, z >> 32
