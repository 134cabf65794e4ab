"""What runs the update rule: :mod:`.cpu` on the CPU, :mod:`.cuda` on a GPU, :mod:`.reference` where nothing was compiled.

Each has a ``Table`` of segments with :meth:`update`, ``GradientStatistics``, and ``operate``. They are loaded at the first
update. What they are told is here.
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
    """One variable, or one part of a flat buffer: dtypes by name, addresses in bytes and the number of elements.

    Attributes:
        dtype: of param and grad: float16, bfloat16, float32 or float64.
        state: of mg, variance and delta: int8, bfloat16, or the dtype of the arithmetic.
        scales: address of the scales of state in int8, see :mod:`.int8_state`; 0 for others.
        master: address of a float32 copy of a 16-bit parameter; 0 where there is none.
        first: index, within its variable, of the first element; with ``key`` it names the element's random numbers.
        key: 32 bits that name the variable.
        group: index of its hyper-parameters and options, from 0 on; as many as the highest, plus 1, are in use.
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
    """The hyper-parameters of a step. ``centered=False`` leaves the mean of the gradients out."""

    learnRate: float
    alpha: float
    momRate: float
    epsilon: float
    centered: bool = True


STATE = ("mg", "variance", "delta")  # what the rule keeps of a variable
RANDOMLY_ROUNDED = ("bfloat16", "int8")  # dtypes of the state that are, and whose steps need a seed

SCALE, CLIP, DECAY, LASSO = range(4)


class Operation(NamedTuple):
    """What is done to a gradient on its way into the rule, in the dtype of the arithmetic; ``wc`` is the segment's.

    SCALE: times ``value``, and times the float64 at ``address``, where that is not 0. CLIP: at least ``value`` and at most
    ``other``; NaN stays. DECAY: plus ``value * wc`` times the parameter, where wc is above 0. LASSO: the same with the
    parameter's sign.
    """

    kind: int
    value: float
    other: float = 0.0
    address: int = 0


class StepOptions(NamedTuple):
    """What a step does besides the rule.

    Attributes:
        operations: on gradients, in order; at most 8.
        zeroGrad: write zeros to the gradient after it was read.
        skip: address of a uint32 in the arrays' memory; where it is not 0, nothing is updated, though zeroGrad still zeroes.
        seed: two 32-bit numbers of the step, for random rounding.
        decay: of the parameters: in the step each loses the part ``|learnRate| * decay * wc`` of itself as well, with the
            segment's learnRate in it, where wc is above 0. Operations and state know nothing of it.
    """

    operations: tuple[Operation, ...] = ()
    zeroGrad: bool = False
    skip: int = 0
    seed: tuple[int, int] = (0, 0)
    decay: float = 0.0


PLAIN = StepOptions()


class ScalingPolicy(NamedTuple):
    """What follows from a step's gradients: the norm to clip to, how a loss scale moves (``interval`` 0: not at all)."""

    limit: float = math.inf
    growth: float = 1.0
    backoff: float = 1.0
    interval: int = 0
    least: float = 2.0**-24
    most: float = 2.0**24


LENIENT = ScalingPolicy()  # no limit, and the scale stays


def real_dtype(dtype: np.dtype | str) -> np.dtype:
    """The dtype of the arithmetic for parameters of ``dtype``, and of the state by default."""
    return np.dtype(np.float64 if str(dtype) == "float64" else np.float32)


def seeds_of(seed: int, t: int) -> tuple[int, int]:
    """Two 32-bit numbers for the random rounding of step ``t``: the output of SplitMix64 number ``t`` from ``seed``."""
    z = (seed + t * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    z ^= z >> 31
    return z & 0xFFFFFFFF, z >> 32
