"""Where float32 is within 1e-4 of exact values: docs/error-bounds.md, against long double and the bound."""

import itertools

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
from tests.reference import Reference
from tests.standins import Net
from tests.stress.numerics import ROWS, Bound
from tests.stress.numerics_rule import of_a_step, of_the_movement

WIDTH = 8  # elements, each with its own noise
ENOUGH = 1e-4


def _gradients(level, noise, steps, rng):
    return (level * (1 + noise * rng.standard_normal((steps, WIDTH)))).astype(np.float32)


def _apart(actual, exact):
    """The largest relative error."""
    return float(np.max(np.abs(actual - exact) / np.abs(exact)))


def _runs(level, noise, steps, alpha, rng):
    """Runs float32 (bit for bit like the kernels: tests/kernels/test_kernel.py) and long double."""
    exact, actual = Reference(np.zeros(WIDTH), np.longdouble), Reference(np.zeros(WIDTH), np.float32)
    for grad in _gradients(level, noise, steps, rng):
        exact.step(grad, alpha=np.longdouble(alpha))
        actual.step(grad, alpha=alpha)
    return actual, exact


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_float32_is_as_near_as_the_rule_says(alpha):
    rng = np.random.default_rng([int(alpha * 1000), 11])
    promised = []
    for noise, steps in itertools.product((0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1), (100, 300, 1000)):
        level = 10 ** rng.uniform(-2, 5)
        actual, exact = _runs(level, noise, steps, alpha, rng)
        said = of_the_movement(level, level * noise, steps, alpha)
        promised.append(said <= ENOUGH)
        assert _apart(actual.param, exact.param) <= said, (level, noise, steps)
        if not noise:
            assert _apart(actual.delta, exact.delta) <= of_a_step(level, 0, steps, alpha), (level, steps)
    # it promises 1e-4 for most of them
    assert np.mean(promised) > 0.5


@pytest.mark.parametrize("level", [97.36, 0.7336, 8.5766, 1234.5, 20000, "100, noise 1e-4"])
def test_300_default_steps(level, backend):
    size, noise = (100, 1e-4) if isinstance(level, str) else (level, 0)
    var = Variable(gpuarray.to_gpu(np.zeros(WIDTH, np.float32)))
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net(W=var))
    exact = Reference(np.zeros(WIDTH), np.longdouble)
    for grad in _gradients(size, noise, 300, np.random.default_rng(3)):
        var.grad.set(grad)
        optimizer.update()
        exact.step(grad, np.longdouble(1e-4), np.longdouble(0.95), np.longdouble(0.9), np.longdouble(1e-4))
    assert of_the_movement(size, size * noise, 300, 0.95) <= ENOUGH
    assert _apart(var.data.get(), exact.param) <= ENOUGH


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.95, 0.99, 0.999])
def test_the_rule_follows_from_the_bound(alpha):
    # one column per level: the rule for constant gradients exceeds the bound that is updated for each element
    levels = np.array([0.01, 1, 10, 50, 100, 1e3, 2e4])
    bound = Bound(ROWS["float32"], Reference(np.zeros(levels.size)), 1e-4, alpha, 0.9, 1e-4)
    worst = np.zeros(levels.size)
    for number in range(1, 1501):
        bound.step(levels.astype(np.float32))
        worst = np.maximum(worst, bound.error["delta"] / np.abs(bound.exact.delta).astype(float))
        if number in (100, 300, 1500):
            assert (worst <= [of_a_step(level, 0, number, alpha) for level in levels]).all()
            moved = bound.error["param"] / np.abs(bound.exact.param).astype(float)
            assert (moved <= [of_the_movement(level, 0, number, alpha) for level in levels]).all()


def test_constant_gradients_of_up_to_58_need_no_limit_of_steps():
    assert of_a_step(58, 0, 20_000, 0.95) <= ENOUGH < of_a_step(60, 0, 20_000, 0.95)


def test_where_nothing_is_promised_it_can_be_far_off():
    # mg stops 2e-2 from a gradient of 20,000: the variance cannot reach the exact 1e-13 after 1,000 steps
    actual, exact = _runs(20_000, 0, 1000, 0.95, np.random.default_rng(0))
    assert (exact.variance < 1e-10).all()
    assert (actual.variance > 1e-6).all()
    assert 1000 * ENOUGH < _apart(actual.param, exact.param) < of_the_movement(20_000, 0, 1000, 0.95)
