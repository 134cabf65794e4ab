"""exportState and importState: out of one optimizer, into another, in local and in global mode."""

import dataclasses

import numpy as np
import pytest

from puzzlelib_rmsprop import LossScaling, RMSPropGraves
from puzzlelib_rmsprop.errors import CheckpointError, SetupError
from tests.standins import Net

SHAPES = {"a": (3,), "b.W": (2, 2), "c": (5,)}


def made(arrays, globalState, shapes=SHAPES, **options):
    net = Net({name: arrays.var(np.full(shape, 0.5, np.float32)) for name, shape in shapes.items()})
    optimizer = RMSPropGraves(learnRate=0.01, **options)
    optimizer.setupOn(net, globalState)
    return net, optimizer


def step(arrays, net, optimizer, seed):
    rng = np.random.default_rng(seed)
    for name in sorted(net.vars):
        grad = net.vars[name].grad
        arrays.put(grad, rng.standard_normal(tuple(grad.shape)).astype(np.float32))
    optimizer.update()


def states(arrays, optimizer):
    return {v.name: {entity: arrays.get(array) for entity, array in v.state.items()} for v in optimizer._variables}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, state in expected.items():
        assert found[name].keys() == state.keys()
        for entity, array in state.items():
            assert np.array_equal(found[name][entity], array, equal_nan=True), (name, entity)


@pytest.mark.parametrize("into", [False, True], ids=["into local", "into global"])
def test_from_one_optimizer_into_another(arrays, globalState, into):
    net, optimizer = made(arrays, globalState)
    for seed in range(3):
        step(arrays, net, optimizer, seed)
    exported = optimizer.exportState()
    other_net, other = made(arrays, into)
    other.importState(exported)
    assert (other.t, other.learnRate) == (3, 0.01)
    assert_same(states(arrays, other), states(arrays, optimizer))
    for name in SHAPES:
        arrays.put(other_net.vars[name].data, arrays.get(net.vars[name].data))
    step(arrays, net, optimizer, 9)
    step(arrays, other_net, other, 9)
    for name in SHAPES:
        assert np.array_equal(arrays.get(net.vars[name].data), arrays.get(other_net.vars[name].data))


def test_what_is_exported_is_a_copy(arrays, globalState):
    net, optimizer = made(arrays, globalState)
    step(arrays, net, optimizer, 0)
    exported = optimizer.exportState()
    before = {key: {entity: array.copy() for entity, array in state.items()} for key, state in exported.arrays.items()}
    step(arrays, net, optimizer, 1)
    assert_same(exported.arrays, before)


def test_the_mean_square_of_puzzlelib_is_there_too(arrays, globalState):
    net, optimizer = made(arrays, globalState)
    step(arrays, net, optimizer, 0)
    exported = optimizer.exportState()
    for variable in exported.variables:
        state = exported.of(variable)
        ms = state["variance"].astype(np.float64) + state["mg"].astype(np.float64) ** 2
        assert np.array_equal(state["ms"], ms.astype(np.float32))


def test_options_and_hooks_come_along(arrays):
    net, optimizer = made(arrays, False, seed=5, gradOfLoss=True)
    scaling = LossScaling(2.0**10)
    optimizer.addHook(scaling)
    step(arrays, net, optimizer, 0)
    _, other = made(arrays, True, seed=6)
    own = LossScaling(1.0)
    other.addHook(own)
    other.importState(optimizer.exportState())
    assert (other.seed, own.scale) == (5, 2.0**10)
    # the mean of gradients of the other sign
    assert np.array_equal(states(arrays, other)["a"]["mg"], -states(arrays, optimizer)["a"]["mg"])


def missing(state):
    return dataclasses.replace(state, variables=[v for v in state.variables if v.name != "c"])


def another_shape(state):
    arrays = {key: {**value, "mg": value["mg"][:1]} for key, value in state.arrays.items()}
    return dataclasses.replace(state, arrays=arrays)


def a_negative_t(state):
    return dataclasses.replace(state, attrs={**state.attrs, "t": -1})


def a_wrong_rate(state):
    return dataclasses.replace(state, attrs={**state.attrs, "momRate": 2.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, "variable 'c': the state has none of that name"),
        (another_shape, r"variable 'a': its 'mg' must be of shape \(3,\); the state has \(1,\)"),
        (a_negative_t, "the attributes in the file are not valid: t must be an int"),
        (a_wrong_rate, "the attributes in the file are not valid: momRate must be"),
    ],
)
def test_what_does_not_fit_changes_nothing(arrays, change, message):
    net, optimizer = made(arrays, False)
    step(arrays, net, optimizer, 0)
    exported = optimizer.exportState()
    step(arrays, net, optimizer, 1)
    before, attrs = states(arrays, optimizer), optimizer.getAttrDict()
    with pytest.raises(CheckpointError, match=message):
        optimizer.importState(change(exported))
    assert_same(states(arrays, optimizer), before)
    assert optimizer.getAttrDict() == attrs


def test_before_set_up():
    optimizer = RMSPropGraves()
    for call in (optimizer.exportState, optimizer.stateLayout):
        with pytest.raises(SetupError, match="not set up: call setupOn"):
            call()


class Kept:
    """A hook that keeps the gradient of the step before."""

    def __init__(self, arrays):
        self.arrays = arrays

    def __call__(self, var, state, stream=None):
        if "old" in state:
            self.arrays.put(var.grad, self.arrays.get(var.grad) + 0.5 * self.arrays.get(state["old"]))
        state["old"] = self.arrays.make(self.arrays.get(var.grad))


@pytest.mark.parametrize("into", [False, True], ids=["into local", "into global"])
def test_what_hooks_keep_is_saved_in_both_modes(arrays, globalState, into, tmp_path):
    net, optimizer = made(arrays, globalState)
    optimizer.addHook(Kept(arrays))
    for seed in range(2):
        step(arrays, net, optimizer, seed)
    optimizer.save(tmp_path / "run.hdf")
    kept = states(arrays, optimizer)
    step(arrays, net, optimizer, 2)
    optimizer.load(tmp_path / "run.hdf")  # after one more step too
    assert_same(states(arrays, optimizer), kept)
    for name in SHAPES:
        arrays.put(net.vars[name].data, np.full(SHAPES[name], 0.5))
    other_net, other = made(arrays, into)
    other.addHook(Kept(arrays))
    other.load(tmp_path / "run.hdf")  # where the hook has not kept anything yet
    assert_same(states(arrays, other), kept)
    step(arrays, net, optimizer, 3)
    step(arrays, other_net, other, 3)
    for name in SHAPES:
        assert np.array_equal(arrays.get(net.vars[name].data), arrays.get(other_net.vars[name].data))


def test_a_file_from_before_a_hook_kept_something(arrays, globalState, tmp_path):
    net, optimizer = made(arrays, globalState)
    step(arrays, net, optimizer, 0)
    optimizer.save(tmp_path / "run.hdf")
    optimizer.addHook(Kept(arrays))
    step(arrays, net, optimizer, 1)
    optimizer.load(tmp_path / "run.hdf")
    assert all("old" not in state for state in states(arrays, optimizer).values())
