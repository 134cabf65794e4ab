"""After an error or an unusual change, the next step is right again."""

import types
from dataclasses import dataclass, field

import numpy as np
import pytest

from puzzlelib_rmsprop import Optimizer, RMSPropGraves, Variable
from puzzlelib_rmsprop.errors import VariableError
from tests.reference import Reference
from tests.tolerances import TOLERANCE, assert_close

F = np.float32


def variables(count=5, size=3):
    return {f"v{i}": Variable(np.full(size, 0.5, F), grad=np.ones(size, F)) for i in range(count)}


def moved(optimizer, net, steps=1):
    before = {name: var.data.copy() for name, var in net.items()}
    for _ in range(steps):
        optimizer.update()
    return {name: var.data - before[name] for name, var in net.items()}


def failing(what):
    def fail(*args, **kwargs):
        raise what

    return fail


@pytest.mark.parametrize("error", [MemoryError("no memory"), KeyboardInterrupt()])
def test_rates_of_a_plan_that_was_never_made_are_not_used(globalState, monkeypatch, error):
    """The table gets new rates, then making the plan fails, and the rates are restored."""
    net, other = variables(), variables()
    optimizer, right = RMSPropGraves(), RMSPropGraves()
    optimizer.setupOn(net, globalState)
    right.setupOn(other, globalState)
    moved(optimizer, net)
    moved(right, other)
    for var in net.values():
        var.learnRate = 100.0
    from puzzlelib_rmsprop import plan

    with monkeypatch.context() as patched:
        patched.setattr(plan, "_statistics", failing(error))
        with pytest.raises(type(error)):
            optimizer.update()
    for var in net.values():
        var.learnRate = 1.0
    steps, expected = moved(optimizer, net), moved(right, other)
    for name in net:
        assert np.array_equal(steps[name], expected[name])


@pytest.mark.parametrize("kind", [Optimizer, RMSPropGraves])
def test_gradients_of_arrays_that_a_subclass_replaces_are_zeroed(kind):
    net = variables()

    class Replacing(kind):
        def zeroGradLocalParams(self):
            for var in self.module.variables.values():
                var.grad = var.grad.copy()
            super().zeroGradLocalParams()

        def updateLocalStates(self, useStreams=False, sync=True):
            if kind is RMSPropGraves:
                super().updateLocalStates(useStreams, sync)

    optimizer = Replacing()
    optimizer.setupOn(net)
    optimizer.update()
    optimizer.zeroGradParams()
    assert all((var.grad == 0).all() for var in net.values())
    # called directly
    for var in net.values():
        var.grad = np.ones(3, F)
    kind.zeroGradLocalParams(optimizer)
    assert all((var.grad == 0).all() for var in net.values())


@dataclass
class Counting:
    """A hook that is equal to others of the same threshold."""

    threshold: float
    count: int = field(default=0, compare=False)

    def __call__(self, var, state, stream=None):
        self.count += 1


@pytest.mark.parametrize("kind", [list, tuple])
def test_hooks_are_told_apart_by_identity(globalState, kind):
    net, optimizer = variables(2), RMSPropGraves()
    optimizer.setupOn(net, globalState)
    first, second = Counting(1.0), Counting(1.0)
    optimizer.hooks = kind([first])
    optimizer.update()
    optimizer.hooks = kind([second])
    optimizer.update()
    assert (first.count, second.count) == (2, 2)


def test_hooks_change_neither_segments_nor_tables(globalState):
    net, optimizer = variables(2), RMSPropGraves()
    optimizer.setupOn(net, globalState)
    optimizer.update()
    plan = optimizer._plan
    optimizer.hooks.append(Counting(1.0))
    optimizer.update()
    assert optimizer._plan.segments is plan.segments
    assert optimizer._plan.table is plan.table


def test_a_net_of_updaters_only_has_a_plan():
    var = Variable(np.ones(3, F), updater=lambda var, rate: None)
    optimizer = RMSPropGraves()
    optimizer.setupOn({"w": var})
    optimizer.update()
    plan = optimizer._plan
    optimizer.update()
    assert plan is not None
    assert optimizer._plan is plan


def test_what_is_no_state_is_refused_by_name(globalState):
    net, optimizer = variables(2), RMSPropGraves()
    optimizer.setupOn(net, globalState)
    optimizer.states["note"] = 5
    before = {name: var.data.copy() for name, var in net.items()}
    with pytest.raises(VariableError, match="states must hold a dict of arrays for each variable; 'note' has 5"):
        optimizer.update()
    assert all(np.array_equal(var.data, before[name]) for name, var in net.items())
    del optimizer.states["note"]
    optimizer.update()


def test_a_schedule_of_one_variable_is_exact(globalState):
    """Compared with the formula in float64: the present table gets a rate that changes in every step."""
    net, optimizer = variables(4), RMSPropGraves(learnRate=0.01)
    optimizer.setupOn(net, globalState)
    references = {name: Reference(np.full(3, 0.5, F)) for name in net}
    rng = np.random.default_rng(3)
    for step in range(6):
        net["v2"].learnRate = 1.0 / (1 + step)
        for name, var in net.items():
            grad = rng.standard_normal(3).astype(F)
            var.grad[...] = grad
            references[name].step(grad, learnRate=0.01 * float(var.learnRate))
        optimizer.update()
    for name, var in net.items():
        assert_close(var.data, references[name].param, TOLERANCE["float32"]["param"], name, scale=0.5)


def test_an_instance_may_override_too():
    net, optimizer = variables(2), RMSPropGraves()
    optimizer.setupOn(net)
    called = []
    optimizer.zeroGradLocalParams = types.MethodType(lambda self: called.append(self), optimizer)
    optimizer.zeroGradParams()
    assert called == [optimizer]
