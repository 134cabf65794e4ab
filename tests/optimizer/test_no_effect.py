"""Settings without effect: one warning that names the right one."""

import copy
import pickle

import numpy as np
import pytest

from puzzlelib_rmsprop import Optimizer, RMSPropGraves, Variable
from puzzlelib_rmsprop.errors import SetupError, SetupWarning
from tests.conftest import ARRAYS
from tests.standins import Net

OWN = ARRAYS["own"]


def var():
    return Variable(np.zeros(3, np.float32), grad=np.ones(3, np.float32))


def made(net, globalState=False):
    optimizer = RMSPropGraves(learnRate=0.1)
    optimizer.setupOn(net, globalState)
    return optimizer


@pytest.mark.parametrize(
    ("name", "right"),
    [
        *((name, "learnRate") for name in ("lr", "learnrate", "learningRate", "learning_rate")),
        *(("momentum", "momRate"), ("momrate", "momRate"), ("eps", "epsilon"), ("rho", "alpha")),
        ("weight_decay", r"addHook\(WeightDecay\(rate\)\)"),
    ],
)
def test_other_names_for_hyper_parameters(name, right):
    optimizer = made({"w": var()})
    with pytest.warns(SetupWarning, match=f"^RMSPropGraves.{name} has no effect: use {right}$") as said:
        setattr(optimizer, name, 0.5)
    assert said[0].filename == __file__
    setattr(optimizer, name, 0.25)  # warned once
    assert getattr(optimizer, name) == 0.25
    delattr(optimizer, name)
    assert not hasattr(optimizer, name)


@pytest.mark.parametrize("name", ["lr", "learnrate", "momentum", "weight_decay", "trainable", "requires_grad"])
def test_other_names_for_rates_of_a_variable(name):
    with pytest.warns(SetupWarning, match=rf"^Variable.{name} has no effect: use (learnRate|momRate|wc)$"):
        setattr(var(), name, 0)


def test_attributes_of_ones_own():
    """No warning for attributes that are registered, defined by a class, or used by the user's own rule."""

    class Mine(RMSPropGraves):
        momentum = 0.0

    class SGD(Optimizer):
        def __init__(self):
            super().__init__()
            self.lr = self.momentum = 0.5

    class Own(RMSPropGraves):
        def updateVar(self, var, state, stream=None):
            var.data += self.lr

    optimizer, own = Mine(), Own()
    optimizer.momentum, optimizer.epoch, optimizer.callback = 0.5, 3, print
    optimizer.setAttr("lr", 0.5)
    optimizer.lr = 0.25
    own.lr = 1.0
    each = var()
    each.tag, each.average = "x", 1.0
    optimizer.setupOn({"w": each})
    for kind in (copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
        kind(each)
    assert copy.deepcopy(optimizer).lr == 0.25
    assert SGD().lr == 0.5
    assert not hasattr(RMSPropGraves(), "lr")
    with pytest.raises(AttributeError, match="there is no attribute 'eps': use epsilon"):
        _ = RMSPropGraves().eps


def test_a_variable_that_came_later(arrays, globalState):
    net = Net({"w": arrays.var(np.zeros(3, np.float32))})
    optimizer = RMSPropGraves()
    optimizer.setupOn(net, globalState)
    net.vars["late"] = arrays.var(np.zeros(3, np.float32))
    message = (
        r"^variable 'late' was added to the net after setupOn and will not be trained: call setupOn\(net, keepState=True\)$"
    )
    with pytest.warns(SetupWarning, match=message) as said:
        optimizer.update()
    assert len(said) == 1
    for _ in range(600):
        optimizer.update()
    optimizer.setupOn(net, globalState, keepState=True)
    optimizer.update()


def test_one_that_comes_in_the_middle_is_found(tmp_path):
    net = {"w": var()}
    optimizer = made(net)
    for _ in range(10):
        optimizer.update()
    net["late"], net["also"] = var(), var()
    with pytest.warns(SetupWarning, match="variables 'late', 'also' were added to the net"):
        optimizer.save(tmp_path / "run.hdf")
    optimizer.save(tmp_path / "run.hdf")
    net["third"] = var()
    while optimizer.t < 16:
        optimizer.update()
    with pytest.warns(SetupWarning, match="variable 'third' was added to the net"):
        optimizer.update()


def test_variables_with_an_updater_are_known(globalState):
    """No warning for variables with an updater, nor for tied ones."""
    shared, own = OWN.var(np.zeros(3, np.float32)), Variable(OWN.make(np.zeros(2)), updater=lambda var, rate: None)
    net = Net({"a": shared, "b": shared, "own": own})
    optimizer = RMSPropGraves()
    optimizer.setupOn(net, globalState)
    optimizer.update()
    net.vars["more"] = Variable(OWN.make(np.zeros(2)), updater=lambda var, rate: None)
    optimizer.t = 256
    with pytest.warns(SetupWarning, match="variable 'more'"):
        optimizer.update()


@pytest.mark.parametrize(
    "name", ["update", "save", "states", "hooks", "module", "attrs", "globalVar", "shParams", "nodeinfo"]
)
def test_names_of_the_optimizer_itself(name):
    optimizer = made({"w": var()})
    before = getattr(optimizer, name)
    with pytest.raises(SetupError, match=f"setAttr: '{name}' is a method or part of the optimizer itself; choose another"):
        optimizer.setAttr(name, 5)
    assert getattr(optimizer, name) == before
    assert name not in optimizer.attrs
    optimizer.update()


def test_a_value_that_is_refused_is_not_registered():
    class Mine(RMSPropGraves):
        kind = property(lambda self: 1)

    optimizer = Mine()
    with pytest.raises(AttributeError):
        optimizer.setAttr("kind", 2)
    assert "kind" not in optimizer.attrs


@pytest.mark.parametrize(
    "given", [lambda: (v for v in [var()]), lambda: {var(), var()}, lambda: {"a": var()}.values()], ids=range(3)
)
def test_other_collections_name_the_remedy(given):
    with pytest.raises(
        SetupError, match=r"setupOn takes a net, a dict of names to variables, or a list\(...\) of them; got"
    ):
        RMSPropGraves().setupOn(given())
