"""When an optimizer calls its hooks, and what they may do to a step."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Hook, RMSPropGraves, Variable, WeightDecay, gpuarray
from tests.optimizer.case import SHAPES, Case
from tests.standins import Net


class Record(Hook):
    def __init__(self):
        self.seen = []

    def __call__(self, var, state, stream=None):
        self.seen.append((var, state))


def test_hooks_see_every_variable_with_its_own_state(arrays, globalState):
    case = Case(arrays, globalState)
    hook = Record()
    case.optimizer.addHook(hook)
    case.var("fc0.b").learnRate = 0
    case.step(frozen={"fc0.b"})
    assert {id(var) for var, _ in hook.seen} == {id(case.var(name)) for name in SHAPES}
    for var, state in hook.seen:
        assert all(array.shape == case.arrays.shape(var.data) for array in state.values())


def test_hooks_run_before_the_step_in_their_order(arrays, globalState):
    case = Case(arrays, globalState)
    case.optimizer.addHook(lambda var, state, stream: arrays.put(var.grad, arrays.get(var.grad) + 1))
    case.optimizer.addHook(lambda var, state, stream: arrays.put(var.grad, arrays.get(var.grad) * 2))
    case.step(change=lambda name, grad, param: (grad + 1) * 2)
    case.check()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weight_decay_acts_in_both_modes(arrays, globalState, dtype):
    case = Case(arrays, globalState, dtype)
    case.optimizer.addHook(WeightDecay(0.1))
    case.var("fc0.W").wc, case.var("fc1.b").wc = 1.0, 0.5
    wc = {"fc0.W": 1.0, "fc1.b": 0.5}

    def decayed(name, grad, param):
        return (grad.astype(np.float64) - 0.1 * wc.get(name, 0.0) * param).astype(dtype)

    for _ in range(3):
        case.step(change=decayed)
    case.check(tolerance=2e-3 if dtype == "float16" else None)


@pytest.mark.parametrize("wc", [0.0, -1.0])
def test_no_weight_decay_unless_wc_is_above_zero(arrays, wc):
    var = arrays.var(np.array([np.inf, 2.0], np.float32))
    var.wc = wc
    WeightDecay(0.5)(var, {})
    assert not arrays.get(var.grad).any()


def test_weight_decay_for_gradients_of_the_loss():
    def trained(sign, **kwargs):
        var = Variable(gpuarray.to_gpu(np.ones(4, np.float32)))
        var.wc = 1.0
        optimizer = RMSPropGraves(**kwargs)
        optimizer.addHook(WeightDecay(0.1, **kwargs))
        optimizer.setupOn(Net(W=var))
        for _ in range(3):
            var.grad[:] = sign * np.arange(4)
            optimizer.update()
        return var.data

    assert np.array_equal(trained(1), trained(-1, gradOfLoss=True))


def test_a_hook_may_set_rates(arrays, globalState):
    case = Case(arrays, globalState)

    def freeze(var, state, stream):
        var.learnRate = 0

    case.optimizer.addHook(freeze)
    case.step(frozen=set(SHAPES))
    case.check()


def test_a_failing_hook_counts_no_step(arrays, globalState):
    case = Case(arrays, globalState)
    case.optimizer.addHook(lambda var, state, stream: 1 / 0)
    before = {name: arrays.get(case.var(name).data) for name in SHAPES}
    with pytest.raises(ZeroDivisionError):
        case.optimizer.update()
    assert case.optimizer.t == 0
    for name, content in before.items():
        assert np.array_equal(arrays.get(case.var(name).data), content)
