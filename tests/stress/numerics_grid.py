"""The grid of hard gradients and of settings that numerics.py and peers.py run."""

import itertools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

ALPHAS = (0.0, 0.5, 0.95, 0.99, 0.999)
MOM_RATES = (0.0, 0.9, 0.99)
EPSILONS = (1e-30, 1e-10, 1e-8, 1e-4)
LEARN_RATE = 1e-4
CONFIGS = np.array(list(itertools.product(ALPHAS, MOM_RATES, EPSILONS)))
# the defaults, values like PyTorch's, and the corners
QUICK = np.array(
    [(0.95, 0.9, 1e-4), (0.99, 0.0, 1e-8), (0.999, 0.99, 1e-30), (0.0, 0.9, 1e-10), (0.5, 0.99, 1e-4), (0.999, 0.0, 1e-8)]
)
WIDTH = 8  # elements per gradient, each with its own noise and sign

Make = Callable[[np.random.Generator, int, np.finfo], np.ndarray]


def _near(size: float, noise: float) -> Make:
    return lambda rng, steps, info: _signs() * size * (1 + noise * rng.standard_normal((steps, WIDTH)))


def _signs() -> np.ndarray:
    return np.where(np.arange(WIDTH) % 2, -1.0, 1.0)


def _normal(rng: np.random.Generator, steps: int) -> np.ndarray:
    return rng.standard_normal((steps, WIDTH))


def _drop(size: float, noise: float) -> Make:
    def make(rng: np.random.Generator, steps: int, info: np.finfo) -> np.ndarray:
        return np.where(np.arange(steps)[:, None] < steps // 3, _near(size, noise)(rng, steps, info), 0.0)

    return make


def _spike(rng: np.random.Generator, steps: int, info: np.finfo) -> np.ndarray:
    gradient = _normal(rng, steps)
    gradient[steps // 3] = _signs() * _largest(info)
    return gradient


def _largest(info: np.finfo) -> float:
    """Roughly the largest gradient whose square the arithmetic can hold; the largest number in float16."""
    return {"float16": 65504.0, "float64": 1e150}.get(np.dtype(info.dtype).name, 1e18)


def _subnormal(rng: np.random.Generator, steps: int, info: np.finfo) -> np.ndarray:
    return _signs() * rng.integers(1, 1000, (steps, WIDTH)) * float(info.smallest_subnormal)


def _switch(first: Make, second: Make) -> Make:
    def make(rng: np.random.Generator, steps: int, info: np.finfo) -> np.ndarray:
        return np.where(np.arange(steps)[:, None] < steps // 3, first(rng, steps, info), second(rng, steps, info))

    return make


def _alternating(size: float, noise: float) -> Make:
    return lambda rng, steps, info: _near(size, noise)(rng, steps, info) * np.where(np.arange(steps) % 2, -1, 1)[:, None]


def _sparse(every: int, size: float) -> Make:
    return lambda rng, steps, info: size * _normal(rng, steps) * (rng.integers(0, every, (steps, WIDTH)) == 0)


def _halves(rng: np.random.Generator, steps: int, info: np.finfo) -> np.ndarray:
    return rng.choice([65504.0, -65504.0, 2.0**-24, -(2.0**-24), 2.0**-14, 1.0, 0.0], (steps, WIDTH))


GRADIENTS: dict[str, Make] = {
    "normal": lambda rng, steps, info: _normal(rng, steps),
    **{
        f"{size:g}, noise {noise:g}": _near(size, noise)
        for size in (1, 10, 100, 1e4)
        for noise in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
    },
    **{f"constant {size:g}": _near(size, 0) for size in (3e-5, 0.1, 1, 10, 100, 1e4)},
    "normal, then 0": _switch(lambda rng, steps, info: _normal(rng, steps), _near(0, 0)),
    "1, noise 0.001, then 0": _drop(1, 1e-3),
    "1e+04, noise 1e-05, then 0": _drop(1e4, 1e-5),
    "subnormal": _subnormal,
    "normal, then subnormal": _switch(lambda rng, steps, info: _normal(rng, steps), _subnormal),
    "one huge spike": _spike,
    "alternating 1": _alternating(1, 0),
    "alternating 1e+04": _alternating(1e4, 0),
    "alternating 100, noise 1e-05": _alternating(100, 1e-5),
    "1 in 100 not 0": _sparse(100, 1),
    "1 in 1000 not 0": _sparse(1000, 100),
    "float16's limits, at random": _halves,
    "constant 65504": _near(65504, 0),
    "65504, noise 0.001": lambda rng, steps, info: np.clip(_near(65504, 1e-3)(rng, steps, info), -65504, 65504),
    "constant 2^-24": _near(2.0**-24, 0),
}


def gradients(steps: int, dtype: Any, seed: int = 0) -> np.ndarray:
    """(steps, WIDTH * len(GRADIENTS)): every gradient of the grid, rounded to ``dtype``."""
    rng, info = np.random.default_rng(seed), ml_dtypes.finfo(dtype)
    return np.concatenate([make(rng, steps, info) for make in GRADIENTS.values()], axis=1).astype(dtype)


def parameters(dtype: Any) -> np.ndarray:
    """The initial parameters for every gradient."""
    return np.random.default_rng(1).uniform(-1, 1, WIDTH * len(GRADIENTS)).astype(dtype)
