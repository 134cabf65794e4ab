"""Error bounds of float32 for gradients around a constant level: docs/error-bounds.md, "Where float32 is enough"."""

import numpy as np

U = 2.0**-24
TIMES = 6  # standard deviations allowed for errors that average out


def mg_stops_within(level: float, alpha: float) -> float:
    """The distance at which mg may stop from the mean of gradients around ``level``."""
    return 2 * U * level / (1 - alpha)


def of_a_step(level: float, noise: float, steps: int, alpha: float, momRate: float = 0.9, epsilon: float = 1e-4) -> float:
    """Bounds the relative error of each of the ``steps``; ``noise``: the gradients' standard deviation."""
    stop, beta = mg_stops_within(level, alpha), 1 - alpha
    first, rest, of_noise = _variance(level, noise, steps, alpha)
    variance = first * (1 - rest) + of_noise
    of_first = first * (7 * np.arange(1, steps + 1) - 6 * (1 - rest) / beta)
    of_variance = U * (of_first + 11 * variance + 4 * of_noise / beta)
    of_root = (of_variance + stop * stop + 2 * stop * noise) / 2 / (variance + epsilon)
    return float(of_root.max() + U * (10 + 2 / (1 - momRate)))


def likely(level: float, noise: float, steps: int, alpha: float, momRate: float = 0.9, epsilon: float = 1e-4) -> float:
    """The same if the noise makes rounding errors independent, so that n of them add up to the square root of n."""
    first, rest, of_noise = (array[-1] for array in _variance(level, noise, steps, alpha))
    beta, x = 1 - alpha, first * (1 - rest) + of_noise + epsilon
    transient = min(steps, (1 + np.log1p(level * level / epsilon)) / beta)
    crossed = level * noise / (2 * x) * min(1, 2 / (beta * steps)) ** 0.5
    squared = U * level * level / (1 - alpha * alpha) / (2 * x)
    return U * TIMES * (3.5 * transient**0.5 + 2 / beta**0.5 + 2 / (1 - momRate) + crossed + squared)


def of_the_movement(level: float, noise: float, steps: int, alpha: float) -> float:
    """Bounds the relative error of a parameter that started at 0: the errors of the steps, and of their sum."""
    step = of_a_step(level, noise, steps, alpha)
    if noise >= mg_stops_within(level, alpha):
        step = min(step, likely(level, noise, steps, alpha))
    # if the noise changes the last places of the sum, it is rounded up as often as down
    adding = min(steps / 2, TIMES * steps**0.5) if noise >= steps * U * level else steps / 2
    return step + U * adding


def _variance(level: float, noise: float, steps: int, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns alpha**n * level**2, alpha**n, and the noise's part of the variance, after each step.

    The rise of mg from 0 to the level leaves alpha**n * (1 - alpha**n) * level**2 in the variance.
    """
    rest = alpha ** np.arange(1.0, steps + 1)
    return level * level * rest, rest, alpha * noise * noise * (1 - rest)
