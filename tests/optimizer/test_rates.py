"""The learning rate and the rates of single variables are read at every step, in both modes."""

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves
from tests.optimizer.case import SHAPES, Case
from tests.standins import Net


def test_frozen_and_own_rates_are_live_in_both_modes(arrays, globalState):
    case = Case(arrays, globalState)
    case.step()
    # PuzzleLib's global mode ignores rates: there, none of these lines has an effect
    case.var("fc0.b").learnRate = 0
    case.var("fc1.W").learnRate, case.var("fc1.W").momRate = 0.25, 0.5
    frozen = arrays.get(case.var("fc0.b").data)
    for _ in range(3):
        case.step(frozen={"fc0.b"}, learnRate={"fc1.W": 0.25}, momRate={"fc1.W": 0.5})
    assert np.array_equal(arrays.get(case.var("fc0.b").data), frozen)
    case.check()
    # unfrozen again, it continues with its old state
    case.var("fc0.b").learnRate = 2.0
    case.step(learnRate={"fc1.W": 0.25, "fc0.b": 2.0}, momRate={"fc1.W": 0.5})
    case.check()


def test_rates_set_before_setup_count(arrays, globalState):
    var, other = arrays.var(np.ones(4, np.float32)), arrays.var(np.ones(4, np.float32))
    var.learnRate = 0
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net(a=var, b=other), globalState)
    arrays.put(var.grad, 1.0)
    arrays.put(other.grad, 1.0)
    optimizer.update()
    assert np.array_equal(arrays.get(var.data), np.ones(4))
    assert (arrays.get(other.data) > 1).all()


def test_negative_learn_rate_of_a_variable_freezes_it(arrays, globalState):
    case = Case(arrays, globalState)
    case.var("fc0.W").learnRate = -1.0
    case.step(frozen={"fc0.W"})
    case.check()


def test_learn_rate_of_the_optimizer_is_live(arrays, globalState):
    case = Case(arrays, globalState)
    case.step()
    case.optimizer.learnRate = 0.5
    case.step()
    # at zero the averages and the momentum are still updated
    case.optimizer.learnRate = 0
    case.step()
    case.check()


def test_frozen_everything(arrays, globalState):
    case = Case(arrays, globalState)
    for name in SHAPES:
        case.var(name).learnRate = 0
    case.step(frozen=set(SHAPES))
    case.check()
    assert case.optimizer.t == 1


def test_swapping_which_variable_is_frozen(arrays, globalState):
    case = Case(arrays, globalState)
    case.var("fc0.W").learnRate = 0
    case.step(frozen={"fc0.W"})
    case.var("fc0.W").learnRate, case.var("fc1.W").learnRate = 1.0, 0
    case.step(frozen={"fc1.W"})
    case.check()
