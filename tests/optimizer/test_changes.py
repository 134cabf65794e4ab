"""A step follows the changes to the net since the last step, and looks up each variable once."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Hook, RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.errors import HyperParameterError
from puzzlelib_rmsprop.nets import Linear, Sequential
from puzzlelib_rmsprop.nets.module import Module
from tests.reference import Reference


class Counting(Module):
    """A net that counts the look-ups of its variables."""

    asked = 0

    def getVar(self, name):
        self.asked += 1
        return super().getVar(name)


def counting(globalState, **options):
    net = Counting()
    for name in ("a", "b", "c"):
        net.setVar(name, Variable(gpuarray.to_gpu(np.ones(4, np.float32)), name=name))
        net.vars[name].grad.fill(1.0)
    optimizer = RMSPropGraves(1e-2, **options)
    optimizer.setupOn(net, globalState)
    for _ in range(3):  # the first steps create tables
        optimizer.zeroGradParams()
        optimizer.update()
    net.asked = 0
    return net, optimizer


def test_each_variable_is_looked_at_once_a_call(globalState):
    net, optimizer = counting(globalState)
    for _ in range(3):
        optimizer.zeroGradParams()
        net.vars["a"].grad.fill(2.0)
        optimizer.learnRate *= 0.5
        optimizer.update()
    assert net.asked == 3 * 2 * len(net.vars)


CHANGES = {
    "a rate": lambda net, optimizer: setattr(net.vars["b"], "learnRate", 0.0),
    "a momentum": lambda net, optimizer: setattr(net.vars["b"], "momRate", 0.0),
    "a variable": lambda net, optimizer: net.setVar("b", Variable(gpuarray.zeros(4), name="b")),
    "a variable, in the dict": lambda net, optimizer: net.vars.update(b=Variable(gpuarray.zeros(4), name="b")),
    "data": lambda net, optimizer: setattr(net.vars["b"], "data", gpuarray.zeros(4)),
    "a gradient": lambda net, optimizer: setattr(net.vars["b"], "grad", gpuarray.to_gpu(np.full(4, 7, np.float32))),
    "a state": lambda net, optimizer: optimizer.states["b"].update(delta=gpuarray.to_gpu(np.ones(4, np.float32))),
    "states": lambda net, optimizer: setattr(
        optimizer, "states", {n: {e: a.copy() + 1 for e, a in s.items()} for n, s in optimizer.states.items()}
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changed_is_followed(what):
    net, optimizer = counting(False)
    CHANGES[what](net, optimizer)
    expected = {}
    for name, var in net.vars.items():
        expected[name] = Reference(var.data, dtype=np.float32)
        for entity in ("mg", "variance", "delta"):
            setattr(expected[name], entity, optimizer.states[name][entity].copy())
    for _ in range(2):
        optimizer.update()
        for name, var in net.vars.items():
            if var.learnRate > 0:
                expected[name].step(var.grad, 1e-2, momRate=0.9 * var.momRate)
    for name, var in net.vars.items():
        assert np.array_equal(var.data, expected[name].param), name
        for entity in ("mg", "variance", "delta"):
            assert np.array_equal(optimizer.states[name][entity], getattr(expected[name], entity)), (name, entity)


def test_a_bad_rate_is_refused_at_every_update(globalState):
    net, optimizer = counting(globalState)
    net.vars["b"].learnRate = float("nan")
    before = net.vars["a"].data.copy()
    for _ in range(3):
        optimizer.zeroGradParams()
        with pytest.raises(HyperParameterError, match="'b': its learnRate"):
            optimizer.update()
    assert np.array_equal(net.vars["a"].data, before)
    assert optimizer.t == 3


def test_modules_of_ones_own_are_asked_every_time():
    class Own(Linear):
        def getVar(self, name):
            calls.append(name)
            return super().getVar(name)

    calls: list = []
    net = Sequential().append(Linear(2, 2)).append(Own(2, 1))
    optimizer = RMSPropGraves()
    optimizer.setupOn(net)
    for _ in range(3):
        optimizer.update()
    calls.clear()
    optimizer.update()
    assert calls


def test_a_module_put_in_anothers_place_is_seen():
    net = Sequential().append(Linear(2, 2, name="fc"))
    optimizer = RMSPropGraves()
    optimizer.setupOn(net)
    for _ in range(3):
        optimizer.update()
    other = Linear(2, 2, name="fc")
    net.modules["fc"] = other
    other.getVar("W").grad.fill(1.0)
    before = other.getVar("W").data.copy()
    optimizer.update()
    assert (other.getVar("W").data > before).all()


def test_a_hook_may_change_a_rate_for_the_same_step(globalState):
    class Freeze(Hook):
        def __call__(self, var, state, stream=None):
            var.learnRate = 0.0

    net, optimizer = counting(globalState)
    before = {name: var.data.copy() for name, var in net.vars.items()}
    optimizer.addHook(Freeze())
    optimizer.update()
    for name, var in net.vars.items():
        assert np.array_equal(var.data, before[name]), name
