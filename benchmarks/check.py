"""Compares contenders with their formulas, computed with NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .work import ALPHA, EPSILON, LEARN_RATE, MOMENTUM, Where, nothing

if TYPE_CHECKING:
    from .contenders import Contender

# gradients of all steps -> change of the parameter
Formula = Callable[[Sequence[np.ndarray]], np.ndarray]


def centered(gradients: Sequence[np.ndarray], outside: bool = False) -> Any:
    """Graves' RMSProp; ``outside``: the root of epsilon is added to the root of the variance."""
    mg = variance = delta = way = 0.0
    for g in gradients:
        d = g - mg
        mg = ALPHA * mg + (1 - ALPHA) * g
        variance = ALPHA * variance + ALPHA * (1 - ALPHA) * d * d
        root = np.sqrt(variance) + np.sqrt(EPSILON) if outside else np.sqrt(variance + EPSILON)
        delta = MOMENTUM * delta - LEARN_RATE * g / root
        way = way + delta
    return way


def epsilon_outside(gradients: Sequence[np.ndarray]) -> Any:
    return centered(gradients, outside=True)


def adam(gradients: Sequence[np.ndarray]) -> Any:
    """Adam with PyTorch's defaults: 0.9 (as MOMENTUM), 0.999 and 1e-8."""
    mean = square = way = 0.0
    for t, g in enumerate(gradients, 1):
        mean = MOMENTUM * mean + (1 - MOMENTUM) * g
        square = 0.999 * square + 0.001 * g * g
        way = way - LEARN_RATE * mean / (1 - MOMENTUM**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
    return way


# relative to the largest change of a parameter; for rounding of parameters, state and float32 hyper-parameters
TOLERANCES = {"int8": 5e-2, "float16": 1e-2, "float32": 1e-5, "float64": 1e-6}
STEPS = 5


def check(contender: Contender, dtype: str, where: Where) -> float:
    """Compares steps with the contender's formula; returns the largest error relative to the largest change of a parameter.

    The gradient changes between the steps, and is zeroed before the last one if the contender can do that.

    Raises:
        ValueError: if the error is larger than rounding explains.
    """
    rng = np.random.default_rng(1)
    sizes = (7, 1000, 33)
    # small parameters, so that rounding does not hide their changes
    params = [(0.01 * rng.standard_normal(n)).astype(dtype) for n in sizes]
    first, second = ([rng.standard_normal(n).astype(dtype) for n in sizes] for _ in range(2))
    work = contender.make(params, first, where)
    if contender.formula is None:
        work.step()
        if not all(map(np.array_equal, work.read(), first)):
            raise ValueError("it does not copy")
        return 0.0
    gradients = [first] * (STEPS // 2) + [second] * (STEPS - STEPS // 2)
    for gradient in gradients:
        work.fill(gradient)
        work.step()
    if work.zero is not nothing:
        work.zero()
        work.step()
        gradients.append([np.zeros_like(each) for each in first])
    start = np.concatenate(params).astype(np.float64)
    way = contender.formula([np.concatenate(gradient).astype(np.float64) for gradient in gradients])
    actual = np.concatenate(work.read()).astype(np.float64)
    # np.max keeps NaN, Python's max does not
    found = float(np.max(np.abs(actual - start - way)) / np.max(np.abs(way)))
    if not found <= TOLERANCES[{1: "int8", 2: "float16"}.get(contender.state(4), dtype)]:
        raise ValueError(f"it does not compute its formula: relative error {found:.1e} after {len(gradients)} steps")
    return found
