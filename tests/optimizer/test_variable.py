"""Variable: data, gradient, rates and updaters."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Variable, gpuarray
from puzzlelib_rmsprop.errors import Error


def test_variable():
    var = Variable(gpuarray.zeros((2, 3)))
    assert var.grad.shape == (2, 3)
    assert (var.learnRate, var.momRate, var.wc) == (1.0, 1.0, 0.0)
    assert not var.hasUpdater
    assert not var.hasPostUpdater
    assert int(Variable(gpuarray.zeros(1)).name) == int(var.name) + 1, "numbered"
    assert Variable(gpuarray.zeros(1), withgrad=False).grad is None
    grad = gpuarray.zeros(1)
    assert Variable(gpuarray.zeros(1), grad=grad).grad is grad


def test_variable_updaters():
    calls = []
    var = Variable(gpuarray.zeros(1), updater=lambda v, rate: calls.append((v, rate)), postUpdater=calls.append)
    assert var.grad is None
    assert var.hasUpdater
    assert var.hasPostUpdater
    var.update(0.5)
    var.postUpdate()
    assert calls == [(var, 0.5), var]
    for call in (lambda: Variable(gpuarray.zeros(1)).update(1), Variable(gpuarray.zeros(1)).postUpdate):
        with pytest.raises(Error, match=r"has no (u|postU)pdater"):
            call()


def test_variable_set(arrays):
    first, second = Variable(arrays.make(np.zeros(3, np.float32))), Variable(arrays.make(np.ones(3, np.float32)))
    arrays.put(second.grad, 2.0)
    data = first.data
    first.set(second)
    assert first.data is data
    assert np.array_equal(arrays.get(first.data), np.ones(3))
    assert np.array_equal(arrays.get(first.grad), np.full(3, 2.0))


def test_global_eval_mode_makes_no_gradients():
    from puzzlelib_rmsprop import Config

    Config.globalEvalMode = True
    assert Variable(gpuarray.zeros(2)).grad is None
