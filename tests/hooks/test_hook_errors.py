"""Hooks and arguments of hooks that are refused."""

import math

import numpy as np
import pytest

from puzzlelib_rmsprop import (
    GradientClipping,
    GradientHardClipping,
    GradientScaling,
    Lasso,
    LossScaling,
    NonFiniteGuard,
    RMSPropGraves,
    Variable,
    WeightDecay,
)
from puzzlelib_rmsprop.errors import HyperParameterError, SetupError, VariableError
from tests.refused import each, ready, refuse, rows, var
from tests.standins import Net


def decaying(variable):
    variable.wc = 1.0
    return variable


def decoupled(rate):
    net, optimizer = ready()
    for variable in net.vars.values():
        decaying(variable).wc = 2.0
    optimizer.addHook(WeightDecay(rate, decoupled=True))
    return optimizer


TABLE = [
    *rows(
        HyperParameterError,
        (lambda: WeightDecay(-1), "rate must be a finite number, at least 0 and below .*; got -1"),
        (lambda: WeightDecay("x"), "rate must be a number; got 'x'"),
        (lambda: WeightDecay(10**400), "rate must be a finite number.*got an int too large for a float"),
        (lambda: WeightDecay(1, gradOfLoss="x"), "gradOfLoss must be True or False; got 'x'"),
        (lambda: WeightDecay(1, decoupled=None), "decoupled must be True or False; got None"),
        (
            lambda: [optimizer := decoupled(1e4), optimizer.update()],
            r"learnRate \(0.0001\), its own learnRate \(1\), .* must be at most 1",
        ),
        (lambda: Lasso(math.inf), "rate.*got inf"),
        (lambda: GradientClipping(0), "threshold must be.*got 0"),
    ),
    *rows(
        SetupError,
        (lambda: RMSPropGraves().addHook(3), "a hook must be callable.*got 3"),
        (lambda: ready()[1].addHook(None), "a hook must be callable.*got None"),
        (lambda: [o := ready()[1], *(o.addHook(NonFiniteGuard()) for _ in "12")], "takes one NonFiniteGuard"),
        (lambda: WeightDecay(1, decoupled=True)(decaying(var()), {}), "a decoupled WeightDecay is part of the step"),
    ),
    *rows(
        VariableError,
        (lambda: WeightDecay(1)(decaying(var(withgrad=False)), {}), "WeightDecay needs a gradient, and it has none"),
    ),
    (lambda: GradientScaling(math.nan), HyperParameterError, "factor must be a finite number, .*got nan"),
    (lambda: GradientScaling(math.inf), HyperParameterError, "factor must be a finite number, .*got inf"),
    (lambda: GradientHardClipping(1, -1), HyperParameterError, r"lower must not be above upper; got 1\.0 and -1\.0"),
    (lambda: GradientHardClipping("a", 1), HyperParameterError, "lower must be a number; got 'a'"),
    (lambda: GradientHardClipping(-1, None), HyperParameterError, "upper must be a number; got None"),
    (lambda: GradientClipping(0), HyperParameterError, "threshold must be.*got 0"),
    (lambda: GradientClipping(-1), HyperParameterError, "threshold must be.*got -1"),
    (lambda: Lasso(-1), HyperParameterError, "rate must be.*at least 0 and below .*; got -1"),
    (lambda: NonFiniteGuard("ignore"), HyperParameterError, "policy must be one of raise, skip, warn; got 'ignore'"),
    (lambda: LossScaling(0), HyperParameterError, "scale must be.*got 0"),
    (lambda: LossScaling(2.0**25), HyperParameterError, r"scale must be at most 1\.67772e\+07; got 33554432"),
    (lambda: LossScaling(growth=0.5), HyperParameterError, "growth must be.*at least 1; got 0.5"),
    (lambda: LossScaling(backoff=0), HyperParameterError, "backoff must be above 0 and at most 1; got 0"),
    (lambda: LossScaling(interval=0), HyperParameterError, r"interval must be an int from 1 to 2\*\*31 - 1; got 0"),
    (lambda: WeightDecay(1e300), HyperParameterError, r"rate must be.*below 3.40282e\+38; got 1e\+300"),
    (lambda: GradientScaling(-1e300), HyperParameterError, r"factor must be.*got -1e\+300"),
    (lambda: NonFiniteGuard(np.zeros(3)), HyperParameterError, "policy must be one of.*got array"),
    (lambda: setattr(NonFiniteGuard(), "policy", "x"), HyperParameterError, "policy must be one of.*got 'x'"),
    (lambda: setattr(LossScaling(), "backoff", 7), HyperParameterError, "backoff must be above 0 and at most 1; got 7"),
    (lambda: setattr(LossScaling(), "interval", -1), HyperParameterError, "interval must be an int.*got -1"),
    (lambda: setattr(Lasso(1), "gradOfLoss", "no"), HyperParameterError, "gradOfLoss must be True or False; got 'no'"),
    (lambda: LossScaling(interval=True), HyperParameterError, "interval must be an int from 1 .*got True"),
]


@each(TABLE)
def test_refused(call, error, message):
    refuse(call, error, message)


def test_limits_may_cross_while_they_are_moved_but_not_when_they_are_used(globalState):
    net, clip = Net(W=Variable(np.ones(3, np.float32))), GradientHardClipping(-1, 1)
    optimizer = RMSPropGraves()
    optimizer.setupOn(net, globalState)
    optimizer.addHook(clip)
    clip.lower = 5
    with pytest.raises(HyperParameterError, match=r"lower must not be above upper; got 5\.0 and 1\.0"):
        optimizer.update()
    assert optimizer.t == 0
    assert (net.getVar("W").data == 1).all()
    clip.upper = 6
    optimizer.update()
    assert optimizer.t == 1


def test_one_guard_an_optimizer():
    optimizer = RMSPropGraves()
    optimizer.addHook(LossScaling())
    with pytest.raises(SetupError, match="takes one NonFiniteGuard"):
        optimizer.addHook(NonFiniteGuard())
    assert len(optimizer.hooks) == 1


def test_hooks_called_by_hand_without_a_gradient(arrays):
    var = arrays.var(np.zeros(2, np.float32), withgrad=False)
    for hook in (WeightDecay(1), Lasso(1), GradientScaling(1), GradientHardClipping(0, 1), GradientClipping(1)):
        with pytest.raises(VariableError, match=f"{type(hook).__name__} needs a gradient, and it has none"):
            hook(var, {})
    with pytest.raises(SetupError, match="guards whole steps"):
        NonFiniteGuard()(var, {})
