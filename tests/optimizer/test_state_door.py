"""exportState and importState: state from one optimizer to another, in local and global mode."""

import dataclasses

import numpy as np
import pytest

from puzzlelib_rmsprop import LossScaling, NodeInfo, Optimizer, RMSPropGraves, Variable, convert
from puzzlelib_rmsprop.checkpoint import OptimizerState
from puzzlelib_rmsprop.errors import CheckpointError, CheckpointWarning, HyperParameterError, SetupError
from tests.conftest import ARRAYS
from tests.standins import Net

OWN = ARRAYS["own"]
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
    with pytest.warns(CheckpointWarning, match="saved with gradOfLoss=True, but this optimizer has gradOfLoss=False"):
        other.importState(optimizer.exportState())
    assert (other.seed, own.scale) == (5, 2.0**10)
    # the mean of gradients with the opposite sign
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
        (missing, "variable 'c': the state has no variable of that name"),
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


def test_what_is_no_state_of_an_optimizer():
    _, optimizer = made(OWN, False)
    with pytest.raises(CheckpointError, match=r"importState\(\) takes the result of exportState\(\); got \{'a': 1\}"):
        optimizer.importState({"a": 1})


def test_before_set_up():
    optimizer = RMSPropGraves()
    for call in (optimizer.exportState, optimizer.stateLayout):
        with pytest.raises(SetupError, match="not set up: call setupOn"):
            call()


class Kept:
    """A hook that keeps the gradient of the previous step."""

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
    optimizer.load(tmp_path / "run.hdf")  # after another step too
    assert_same(states(arrays, optimizer), kept)
    for name in SHAPES:
        arrays.put(net.vars[name].data, np.full(SHAPES[name], 0.5))
    other_net, other = made(arrays, into)
    other.addHook(Kept(arrays))
    other.load(tmp_path / "run.hdf")  # before the hook has kept anything
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
    with pytest.warns(CheckpointWarning, match="hooks differ: only this optimizer has Kept"):
        optimizer.load(tmp_path / "run.hdf")
    assert all("old" not in state for state in states(arrays, optimizer).values())


def test_states_are_found_by_name():
    _net, optimizer = made(OWN, True)
    layout = {v.name: v for v in optimizer.stateLayout()}
    named = [layout["c"], layout["a"], layout["b.W"]]  # in another order
    states_of = [
        dict.fromkeys(("mg", "variance", "delta"), np.full(v.shape, i + 1, np.float32)) for i, v in enumerate(named)
    ]
    optimizer.importState(OptimizerState({"t": 3}, named, states=states_of))
    found = states(OWN, optimizer)
    assert {name: state["mg"].ravel()[0] for name, state in found.items()} == {"c": 1, "a": 2, "b.W": 3}
    before = states(OWN, optimizer)
    for change, message in (
        ({"variance": np.full((3,), -1, np.float32)}, "its 'variance' in the state is below 0"),
        ({"mg": np.zeros((4,), np.float32)}, r"its 'mg' must be of shape \(3,\)"),
        ({"mg": [0.0, 0.0, 0.0]}, "its 'mg' must be a NumPy array without a mask"),
    ):
        wrong = [states_of[0], states_of[1] | change, states_of[2]]
        with pytest.raises(CheckpointError, match=message):
            optimizer.importState(OptimizerState({"t": 9, "learnRate": 0.5}, named, states=wrong))
    with pytest.raises(CheckpointError, match="3 variables and 2 states"):
        optimizer.importState(OptimizerState({"t": 9}, named, states=states_of[:2]))
    with pytest.raises(CheckpointError, match="variable 'a': the state has no arrays for it"):
        optimizer.importState(OptimizerState({"t": 9}, list(layout.values()), arrays={}))
    assert_same(states(OWN, optimizer), before)
    assert (optimizer.t, optimizer.learnRate) == (3, 0.01)


def test_into_an_optimizer_with_its_state_in_parts():
    net, optimizer = made(OWN, False)
    step(OWN, net, optimizer, 0)
    other_net = Net({name: OWN.var(np.full(shape, 0.5, np.float32)) for name, shape in SHAPES.items()})
    other = RMSPropGraves(learnRate=0.5, nodeinfo=NodeInfo(), shardState=True)
    other.setupOn(other_net, True)
    other.importState(optimizer.exportState())
    assert (other.t, other.learnRate) == (1, 0.01)
    flat = other.states[np.float32]["mg"]
    expected = states(OWN, optimizer)
    mine = np.concatenate([expected[name]["mg"].ravel() for name in sorted(SHAPES)])
    assert np.array_equal(OWN.get(flat)[: mine.size], mine)


def test_an_attribute_that_is_unknown_is_ignored_with_a_warning():
    _net, optimizer = made(OWN, False)
    optimizer.setAttr("more", np.zeros(2))
    exported = optimizer.exportState()
    optimizer.more += 1
    assert exported.attrs["more"].tolist() == [0, 0]  # a copy
    _other_net, other = made(OWN, False)
    with pytest.warns(CheckpointWarning, match="attribute 'more' of the state is unknown to this optimizer; ignored"):
        other.importState(exported)
    assert not hasattr(other, "more")


class Scaled(Optimizer):
    """State with one element shared by all variables, and state of each variable."""

    def setupState(self, var):
        return {"m": np.zeros(var.data.shape, np.float32), "scale": np.full(1, 2.0, np.float32)}

    def updateVar(self, var, state, stream=None):
        state["m"] += var.grad
        var.data += state["scale"] * state["m"]


def test_one_array_for_all_variables(globalState):
    def scaled():
        net = Net(
            {n: Variable(np.ones(k, np.float32), grad=np.ones(k, np.float32)) for n, k in (("a", 3), ("b", 1), ("c", 2))}
        )
        optimizer = Scaled()
        optimizer.setupOn(net, globalState)
        return net, optimizer

    _net, optimizer = scaled()
    optimizer.update()
    exported = optimizer.exportState()
    _, other = scaled()
    other.importState(exported)
    for variable, state in zip(exported.variables, other._variables, strict=True):
        assert exported.of(variable)["m"].tolist() == state.state["m"].tolist() == [1.0] * len(state.state["m"])
        assert exported.of(variable)["scale"].tolist() == state.state["scale"].tolist() == [2.0]


@pytest.mark.parametrize("into", [False, True], ids=["into local", "into global"])
def test_what_hooks_keep_under_the_name_of_a_form(globalState, into, tmp_path):
    """A hook's "ms" is not the optimizer's mean square; it stays bfloat16."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    _net, optimizer = made(OWN, globalState)
    optimizer._variables[0].state["half"] = np.full(3, 1.5, bfloat16)
    optimizer.save(tmp_path / "run.hdf")
    _, other = made(OWN, into)
    other.load(tmp_path / "run.hdf")
    assert other._variables[0].state["half"].dtype == bfloat16
    assert other._variables[0].state["half"].tolist() == [1.5] * 3
    _, third = made(OWN, into)
    third.importState(optimizer.exportState())
    assert third._variables[0].state["half"].tolist() == [1.5] * 3


def test_a_conversion_leaves_what_hooks_keep(globalState):
    _net, optimizer = made(OWN, globalState)
    optimizer._variables[0].state["old"] = np.full(3, 7, np.float32)
    found = convert.toChainer(optimizer)
    convert.fromChainer(optimizer, found)
    assert optimizer._variables[0].state["old"].tolist() == [7] * 3


def test_a_wrong_t_does_not_hinder_loading(tmp_path):
    _, optimizer = made(OWN, False)
    optimizer.save(tmp_path / "run.hdf")
    optimizer.t = -1
    with pytest.raises(HyperParameterError, match="t must be"):
        optimizer.save(tmp_path / "again.hdf")
    optimizer.load(tmp_path / "run.hdf")
    assert optimizer.t == 0
