"""NonFiniteGuard: skipped steps, errors and warnings."""

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientScaling, NonFiniteGuard
from puzzlelib_rmsprop.errors import NonFiniteError, NonFiniteWarning
from tests.hooks.training import SHAPES, assert_same, contents, set_grads, train


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_skipped_step_changes_nothing(arrays, globalState, dtype, bad):
    net, optimizer = train(arrays, [NonFiniteGuard()], globalState, dtype, steps=2)
    guard = optimizer.hooks[0]
    before = contents(arrays, net, optimizer)
    for name, where in (("a.W", (6, 4)), ("a.b", (0,)), ("z", (0,))):
        set_grads(arrays, net, 7)
        grad = arrays.get(net.getVar(name).grad)
        grad[where] = bad
        arrays.put(net.getVar(name).grad, grad)
        optimizer.update()
        assert_same(contents(arrays, net, optimizer), before)
    assert guard.skipped == 3
    assert optimizer.t == 5
    set_grads(arrays, net, 2)
    optimizer.update()
    assert guard.skipped == 3
    assert arrays.get(net.getVar("a.W").data).tobytes() != before["a.W"].tobytes()


def test_the_guard_raises_and_names(arrays, globalState):
    net, optimizer = train(arrays, [NonFiniteGuard("raise")], globalState, steps=2)
    before = contents(arrays, net, optimizer)
    for name in ("z", "a.b"):
        arrays.put(net.getVar(name).grad, np.full(SHAPES[name], np.inf, np.float32))
    with pytest.raises(NonFiniteError, match=r"gradients of 'a\.b', 'z'; nothing was updated"):
        optimizer.update()
    assert optimizer.t == 2
    # its traceback would keep the callers' objects alive
    assert not [value for value in vars(optimizer).values() if isinstance(value, BaseException)]
    assert_same(contents(arrays, net, optimizer), before)


@pytest.mark.parametrize("size", [1e20, 1e22, 3e38])
def test_the_guard_trips_where_a_square_overflows(arrays, globalState, size):
    # without the guard the variance becomes infinite, and the element never moves again or becomes NaN
    net, optimizer = train(arrays, [NonFiniteGuard("raise")], globalState, steps=1)
    before = contents(arrays, net, optimizer)
    arrays.put(net.getVar("z").grad, np.full((1,), size, np.float32))
    with pytest.raises(NonFiniteError, match=r"squares are not finite: the gradient of 'z'; nothing was updated"):
        optimizer.update()
    assert_same(contents(arrays, net, optimizer), before)
    arrays.put(net.getVar("z").grad, np.full((1,), 1.8e19, np.float32))
    optimizer.update()
    assert all(np.isfinite(content).all() for content in contents(arrays, net, optimizer).values())


def test_the_guard_says_where_a_hook_made_it_overflow(arrays):
    net, optimizer = train(arrays, [GradientScaling(1e30), NonFiniteGuard("raise")], False, steps=0)
    set_grads(arrays, net, 0)
    with pytest.raises(NonFiniteError, match="the gradients, after the hooks before this one; nothing"):
        optimizer.update()


def test_the_guard_warns_and_names(arrays, globalState):
    net, optimizer = train(arrays, [NonFiniteGuard("warn")], globalState, steps=2)
    before = contents(arrays, net, optimizer)
    arrays.put(net.getVar("z").grad, np.full((1,), np.nan, np.float32))
    with pytest.warns(NonFiniteWarning, match="not finite: the gradient of 'z'"):
        optimizer.update()
    assert_same(contents(arrays, net, optimizer), before)
    assert optimizer.t == 3
