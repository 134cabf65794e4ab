"""The plan of a step: made once, replaced when something has changed, and updated with new rates."""

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, NonFiniteGuard, RMSPropGraves, WeightDecay
from tests.standins import Net

SHAPES = {"a": (3,), "b": (2, 2), "c": (5,)}


def made(arrays, globalState, hooks=(), **options):
    net = Net({name: arrays.var(np.full(shape, 0.5, np.float32)) for name, shape in SHAPES.items()})
    for var in net.vars.values():
        var.wc = 1.0
    optimizer = RMSPropGraves(learnRate=0.01, **options)
    for hook in hooks:
        optimizer.addHook(hook)
    optimizer.setupOn(net, globalState)
    return net, optimizer


@pytest.fixture
def tables(monkeypatch):
    """Records every table that is created, on any device."""
    found = []
    real = RMSPropGraves._pack

    def pack(self, segments, family, former=None):
        rows, table = real(self, segments, family, former)
        if not any(table is other for other in found):
            found.append(table)
        return rows, table

    monkeypatch.setattr(RMSPropGraves, "_pack", pack)
    return found


def test_one_plan_for_many_steps(arrays, globalState):
    _, optimizer = made(arrays, globalState, [WeightDecay(0.1), GradientClipping(1.0)])
    optimizer.update()
    plan = optimizer._plan
    for _ in range(3):
        optimizer.zeroGradParams()
        optimizer.update()
        assert optimizer._plan is plan


CHANGES = {
    "a rate": lambda net, optimizer: setattr(net.vars["b"], "learnRate", 0.5),
    "a frozen variable": lambda net, optimizer: setattr(net.vars["b"], "learnRate", 0.0),
    "a hook": lambda net, optimizer: optimizer.addHook(WeightDecay(0.1)),
    "no hook": lambda net, optimizer: optimizer.hooks.clear(),
    "another hook": lambda net, optimizer: optimizer.hooks.__setitem__(0, NonFiniteGuard()),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_makes_another(arrays, globalState, change):
    net, optimizer = made(arrays, globalState, [NonFiniteGuard()])
    optimizer.update()
    plan = optimizer._plan
    CHANGES[change](net, optimizer)
    optimizer.zeroGradParams()
    optimizer.update()
    assert optimizer._plan is not plan
    assert len(optimizer._plan.statistics) == sum(isinstance(hook, NonFiniteGuard) for hook in optimizer.hooks)


def test_new_rates_are_told_to_the_table_that_is_there(arrays, tables):
    net, optimizer = made(arrays, False)
    for step in range(6):
        net.vars["a"].learnRate = 1.0 / (1 + step)  # its own schedule
        optimizer.update()
    assert len(tables) == 1
    net.vars["c"].learnRate = 0.0
    optimizer.update()
    assert len(tables) == 2


def test_a_schedule_of_a_variable_counts(arrays, globalState):
    """Bitwise equal to an optimizer that is set up again before each step and given the state."""
    net, optimizer = made(arrays, globalState)
    other_net, other = made(arrays, globalState)
    rng = np.random.default_rng(7)
    for step in range(5):
        grads = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        state = other.exportState()
        other.setupOn(other_net, globalState)
        other.importState(state)
        for each, its in ((optimizer, net), (other, other_net)):
            its.vars["b"].learnRate = 1.0 / (1 + step)
            for name, grad in grads.items():
                arrays.put(its.vars[name].grad, grad)
            each.update()
    for name in SHAPES:
        assert np.array_equal(arrays.get(net.vars[name].data), arrays.get(other_net.vars[name].data))
