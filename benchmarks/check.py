"""Whether a contender computes its formula: the formulas in NumPy and float64, and the comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .work import ALPHA, EPSILON, LEARN_RATE, MOMENTUM, Where, nothing

if TYPE_CHECKING:
    from .contenders import Contender

# of the gradients of all steps: the change of the parameter
Formula = Callable[[Sequence[np.ndarray]], np.ndarray]


def centered(gradients: Sequence[np.ndarray], outside: bool = False) -> Any:
    """Graves' RMSProp; ``outside``: epsilon's root is added to the root of the variance."""
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
    """With PyTorch's defaults: 0.9 (as MOMENTUM), 0.999 and 1e-8."""
    mean = square = way = 0.0
    for t, g in enumerate(gradients, 1):
        mean = MOMENTUM * mean + (1 - MOMENTUM) * g
        square = 0.999 * square + 0.001 * g * g
        way = way - LEARN_RATE * mean / (1 - MOMENTUM**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-8)
    return way


# of the longest way that a parameter went: rounding of the parameter, of the state, and of float32 hyper-parameters
TOLERANCES = {"int8": 5e-2, "float16": 1e-2, "float32": 1e-5, "float64": 1e-6}
STEPS = 5


def check(contender: Contender, dtype: str, where: Where) -> float:
    """Takes steps beside the contender's formula; the largest difference, of the longest way of a parameter.

    The gradient changes on the way, and is zeroed before the last step where that is something that the contender does.

    Raises:
        ValueError: when it is more than rounding.
    """
    rng = np.random.default_rng(1)
    sizes = (7, 1000, 33)
    # small parameters, so that the way they go is not lost in their own rounding
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
    # not Python's max, which loses NaN
    found = float(np.max(np.abs(actual - start - way)) / np.max(np.abs(way)))
    if not found <= TOLERANCES[{1: "int8", 2: "float16"}.get(contender.state(4), dtype)]:
        raise ValueError(f"it does not compute its formula: {found:.1e} of the way off after {len(gradients)} steps")
    return found
