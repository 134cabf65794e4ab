"""Copies and pickles of an optimizer: each works on its own net, in local and in global mode."""

import copy
import pickle

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, NodeInfo, RMSPropGraves, Variable
from puzzlelib_rmsprop.errors import SetupError
from tests.conftest import ARRAYS
from tests.standins import Net

SHAPES = {"b": (3,), "a.W": (2, 2), "c": ()}
OWN = ARRAYS["own"]


@pytest.fixture
def copied(arrays):
    """The arrays that can be copied and pickled; PuzzleLib's GPU arrays cannot, so a net of them cannot either."""
    if arrays.name == "puzzlelib-cuda":
        pytest.skip("a net of these arrays cannot be copied or pickled by itself")
    return arrays


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def made(arrays, globalState, **options):
    net = Net({name: arrays.var(np.full(shape, 0.5, np.float32)) for name, shape in SHAPES.items()})
    optimizer = RMSPropGraves(learnRate=0.01, **options)
    optimizer.addHook(GradientClipping(0.5))
    optimizer.setupOn(net, globalState)
    return net, optimizer


def step(arrays, net, optimizer, seed):
    rng = np.random.default_rng(seed)
    for name in sorted(SHAPES):
        arrays.put(net.getVar(name).grad, rng.standard_normal(SHAPES[name]).astype(np.float32))
    optimizer.update()


def content(arrays, net, optimizer):
    optimizer.exportState()
    return {
        v.name: {"param": arrays.get(net.getVar(v.name).data), **{e: arrays.get(a) for e, a in v.state.items()}}
        for v in optimizer._variables
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        for entity, array in first[name].items():
            assert np.array_equal(array, second[name][entity]), f"{name}: {entity}"


@pytest.mark.parametrize("how", [copy.deepcopy, pickled], ids=["copy", "pickle"])
@pytest.mark.parametrize("options", [{}, {"stateDtype": "bfloat16", "seed": 3}], ids=["float32", "bfloat16"])
def test_a_copy_goes_on_by_itself(copied, globalState, how, options):
    arrays = copied
    net, optimizer = made(arrays, globalState, **options)
    for seed in range(3):
        step(arrays, net, optimizer, seed)
    net.getVar("b").learnRate = 0.5
    if globalState:
        optimizer.globalVar[np.float32].momRate = 0.5
    before = content(arrays, net, optimizer)
    twin = how(optimizer)
    assert_same(content(arrays, twin.module, twin), before)
    step(arrays, twin.module, twin, 3)
    assert_same(content(arrays, net, optimizer), before)
    step(arrays, net, optimizer, 3)
    assert_same(content(arrays, twin.module, twin), content(arrays, net, optimizer))
    assert twin.t == optimizer.t == 4
    assert twin.globalState is globalState


@pytest.mark.parametrize("how", [copy.deepcopy, pickled], ids=["copy", "pickle"])
def test_net_and_optimizer_together(copied, globalState, how):
    """The copied optimizer trains the copied net, whichever of the two is copied first or refers to the other."""
    arrays = copied
    net, optimizer = made(arrays, globalState)
    step(arrays, net, optimizer, 0)
    net.trainer = optimizer  # a net that knows its optimizer
    (twins, other), third = how(([net, optimizer], net.trainer)), how(net)
    twin = twins[0]
    assert other is twins[1] is twin.trainer
    for each, trainer in ((twin, other), (third, third.trainer)):
        assert trainer.module is each
        step(arrays, each, trainer, 1)
    step(arrays, net, optimizer, 1)
    for each in (twin, third):
        assert_same(content(arrays, each, each.trainer), content(arrays, net, optimizer))


def test_a_shallow_copy_shares_net_and_state(arrays, globalState):
    net, optimizer = made(arrays, globalState)
    step(arrays, net, optimizer, 0)
    twin = copy.copy(optimizer)
    step(arrays, net, twin, 1)
    other, expected = made(arrays, globalState)
    for seed in range(3):
        step(arrays, other, expected, seed)
    step(arrays, net, optimizer, 2)
    assert_same(content(arrays, net, optimizer), content(arrays, other, expected))


def test_before_the_first_call_a_copy_shows_its_state():
    net, optimizer = made(OWN, True)
    step(OWN, net, optimizer, 0)
    twin = copy.deepcopy(optimizer)
    flat, own = twin.states[np.float32]["mg"], optimizer.states[np.float32]["mg"]
    assert flat is not own
    assert np.array_equal(flat.get(), own.get())
    assert twin.module.getVar("b").data.base is not None  # a view of the copy's own buffer
    assert not np.shares_memory(np.asarray(twin.module.getVar("b").data), np.asarray(net.getVar("b").data))


def test_a_copy_whose_net_has_changed_is_refused():
    net, optimizer = made(OWN, True)
    state = optimizer.__getstate__()
    fresh = object.__new__(RMSPropGraves)
    fresh.__setstate__({**state, "module": Net({"b": OWN.var(np.zeros(3, np.float32))})})
    with pytest.raises(SetupError, match="the copy's net has other variables than the net of the original optimizer"):
        fresh.update()
    assert net.getVar("b").data is optimizer._variables[1].data


def test_a_copy_before_setup():
    twin = pickled(RMSPropGraves(0.5))
    twin.setupOn({"w": Variable(np.zeros(2, np.float32))}, True)
    assert twin.learnRate == 0.5


@pytest.mark.parametrize("how", [copy.deepcopy, pickle.dumps])
def test_of_a_group(how):
    class Two(NodeInfo):
        def allgatherObject(self, value):
            return [value, value]

    optimizer = RMSPropGraves(nodeinfo=Two(0, 2))
    optimizer.setupOn(Net({"w": OWN.var(np.zeros(3, np.float32))}), True)
    with pytest.raises(SetupError, match="in a group of processes cannot be copied or pickled: save"):
        how(optimizer)


def test_of_a_group_of_one():
    optimizer = RMSPropGraves(nodeinfo=NodeInfo())
    optimizer.setupOn(Net({"w": OWN.var(np.zeros(3, np.float32))}), True)
    assert copy.deepcopy(optimizer).exportState().attrs["t"] == 0


def test_attributes_of_a_copy_are_its_own(tmp_path):
    _, optimizer = made(OWN, False)
    copy.copy(optimizer).setAttr("epoch", 1)
    optimizer.save(tmp_path / "run.hdf")
    assert "epoch" not in optimizer.attrs


def test_a_shallow_copy_has_what_hooks_keep(globalState):
    def count(var, state, stream=None):
        state.setdefault("n", np.zeros(1, np.float32))
        state["n"] += 1

    _, optimizer = made(OWN, globalState)
    optimizer.addHook(count)
    for each in (optimizer, optimizer, copy.copy(optimizer)):
        each.update()
    assert {float(v.state["n"][0]) for v in optimizer._variables} == {3.0}


def test_a_copy_with_the_net_of_the_first_is_refused():
    """In global mode a net belongs to one optimizer; the original can continue."""
    net, optimizer = made(OWN, True)
    twin = copy.deepcopy(optimizer, {id(net): net})
    step(OWN, net, optimizer, 0)
    with pytest.raises(
        SetupError, match="the copy has a net that another optimizer uses in global mode: copy net and optimizer together"
    ):
        twin.update()
    step(OWN, net, optimizer, 1)


def test_a_copy_whose_first_set_up_fails_keeps_its_state():
    class Stubborn(Net):
        refuses = False

        def setVar(self, name, var):
            if self.refuses:
                raise RuntimeError("no")
            super().setVar(name, var)

    net = Stubborn({"w": OWN.var(np.zeros(3, np.float32))})
    net.trainer = RMSPropGraves()
    net.trainer.setupOn(net, True)
    net.getVar("w").grad.fill(1)
    net.trainer.update()
    twin = copy.deepcopy(net)
    twin.refuses = True
    with pytest.raises(RuntimeError, match="no"):
        twin.trainer.update()
    twin.refuses = False
    for each in (net, twin):
        each.getVar("w").grad.fill(2)
        each.trainer.update()
    assert np.array_equal(net.getVar("w").data.get(), twin.getVar("w").data.get())
    assert twin.trainer.t == 2
