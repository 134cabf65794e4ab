"""Files of this library load bit for bit, whatever the names, the order and the mode."""

import os

import h5py
import numpy as np
import pytest

from puzzlelib_rmsprop import Optimizer, RMSPropGraves, gpuarray
from puzzlelib_rmsprop.tools.inspection import inspect
from tests.checkpoint.training import BUFFERS, SHAPES, Own, assert_same, content, net_of, step, trained
from tests.standins import Net


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("saved", [False, True], ids=["from-local", "from-global"])
@pytest.mark.parametrize("loaded", [False, True], ids=["to-local", "to-global"])
def test_resume_is_bit_for_bit(arrays, dtype, saved, loaded, tmp_path):
    optimizer = trained(arrays, saved, SHAPES, dtype)
    optimizer.learnRate = 0.5
    optimizer.save(tmp_path / "run.hdf")
    params = {name: arrays.get(optimizer.module.getVar(name).data) for name in SHAPES}

    fresh = RMSPropGraves(alpha=0.1, momRate=0.2, epsilon=0.3)
    fresh.setupOn(net_of(arrays, SHAPES, dtype, seed=9), loaded)
    for name, param in params.items():
        arrays.put(fresh.module.getVar(name).data, param)
    fresh.load(tmp_path / "run.hdf")
    assert fresh.getAttrDict() == optimizer.getAttrDict()
    assert_same(content(arrays, fresh), content(arrays, optimizer))
    step(arrays, optimizer, 4, seed=1)
    step(arrays, fresh, 4, seed=1)
    assert_same(content(arrays, fresh), content(arrays, optimizer))
    for name in SHAPES:
        ends = [arrays.get(each.module.getVar(name).data) for each in (optimizer, fresh)]
        assert np.array_equal(*ends), name


def test_saving_replaces_a_file_and_closes_it(tmp_path):
    optimizer = trained(Own, False, SHAPES)
    path = tmp_path / "run.hdf"
    for _ in range(2):
        optimizer.save(str(path))
        step(Own, optimizer)
    with h5py.File(path, "r+") as file:  # fails if the file is still open elsewhere
        assert file[".attrs/t"][()] == 4
    assert os.listdir(tmp_path) == ["run.hdf"]


def test_an_open_file_is_left_open_and_may_hold_several(tmp_path):
    first, second = trained(Own, False, SHAPES), trained(Own, True, SHAPES, seed=1)
    with h5py.File(tmp_path / "both.hdf", "w") as file:
        first.save(file, name="first")
        second.save(file.create_group("inner"), name="second")
        assert file
        file["mine"] = 1
    others = [RMSPropGraves(), RMSPropGraves()]
    for other in others:
        other.setupOn(net_of(Own, SHAPES))
    with h5py.File(tmp_path / "both.hdf", "r") as file:
        others[0].load(file, name="first")
        others[1].load(file["inner"], name="second")
        assert file["mine"][()] == 1
    assert_same(content(Own, others[0]), content(Own, first))
    assert_same(content(Own, others[1]), content(Own, second))


def test_a_different_order_and_other_tied_names(tmp_path):
    shared = Own.var(np.ones((2, 2), np.float32))
    net = Net({"z": Own.var(np.ones(3, np.float32)), "enc.W": shared, "dec.W": shared})
    for globalState in (False, True):
        optimizer = RMSPropGraves()
        optimizer.setupOn(net, globalState)
        step(Own, optimizer, 2)
        optimizer.save(tmp_path / "tied.hdf")
        turned = Own.var(np.ones((2, 2), np.float32))
        other = RMSPropGraves()
        other.setupOn(Net({"dec.W": turned, "z": Own.var(np.ones(3, np.float32)), "enc.W": turned}), not globalState)
        other.load(tmp_path / "tied.hdf")
        states = {slot.names[0]: slot.state for slot in other._variables}
        for entity in BUFFERS:
            saved = next(slot.state for slot in optimizer._variables if slot.var is shared)
            assert np.array_equal(states["dec.W"][entity], saved[entity])


def test_attributes_of_every_kind(tmp_path):
    class Mine(RMSPropGraves):
        def __init__(self):
            super().__init__()
            for name, value in (("epoch", 3), ("tag", "a"), ("on", True), ("table", np.arange(3))):
                self.setAttr(name, value)

    optimizer, other = Mine(), Mine()
    for each in (optimizer, other):
        each.setupOn(net_of(Own, SHAPES))
    optimizer.setAttr("epoch", 7)
    optimizer.setAttr("tag", "b/ü")
    optimizer.setAttr("on", False)
    optimizer.setAttr("table", np.array([5, 6, 7]))
    optimizer.save(tmp_path / "run.hdf")
    other.load(tmp_path / "run.hdf")
    assert (other.epoch, other.tag, other.on, other.table.tolist()) == (7, "b/ü", False, [5, 6, 7])
    assert type(other.epoch) is int
    assert type(other.on) is bool


def test_names_with_slashes(tmp_path):
    shapes = {"a/b.W": (2,), "c": (3,)}
    optimizer = trained(Own, False, shapes)
    optimizer.save(tmp_path / "run.hdf")
    other = RMSPropGraves()
    other.setupOn(net_of(Own, shapes), True)
    other.load(tmp_path / "run.hdf")
    assert_same(content(Own, other), content(Own, optimizer))


ODD_NAMES = ["a\0b", "/abs", ".", "", "./x", "a//b", "/", "a/", "ü€😀", "float32", "<class 'numpy.float32'>", "x" * 10_000]


@pytest.mark.parametrize("loaded", [False, True], ids=["into-local", "into-global"])
def test_odd_names(globalState, loaded, tmp_path):
    # HDF5 treats a name as a path that ends at a NUL; and a flat state is named float32
    shapes = {name: (2 + i,) for i, name in enumerate([*ODD_NAMES, "abs", "x", "a/b", "W"])}
    optimizer = trained(Own, globalState, shapes)
    optimizer.save(tmp_path / "run.hdf")
    found = inspect(tmp_path / "run.hdf")
    assert not found["damaged"]
    for each in found["parts"][0]["variables"]:
        assert [entity["shape"] for entity in each["entities"].values()] == [each["shape"]] * 4
    other = RMSPropGraves()
    other.setupOn(net_of(Own, shapes), loaded)
    other.load(tmp_path / "run.hdf")
    assert_same(content(Own, other), content(Own, optimizer))
    with h5py.File(tmp_path / "open.hdf", "w") as file:
        optimizer.save(file.create_group("within"))
        assert list(file) == ["within"]


def test_a_state_for_all_of_the_shape_of_one(tmp_path):
    class Counting(RMSPropGraves):
        def setupState(self, var):
            return {**super().setupState(var), "count": gpuarray.zeros(3)}

    optimizer, other = Counting(), Counting()
    for each in (optimizer, other):
        each.setupOn(net_of(Own, {"a": (2,), "b": (3,)}), True)
    optimizer.states[np.dtype(np.float32)]["count"].set(np.array([1, 2, 3], np.float32))
    optimizer.save(tmp_path / "run.hdf")
    other.load(tmp_path / "run.hdf")
    assert other.states[np.dtype(np.float32)]["count"].tolist() == [1, 2, 3]


class Squares(Optimizer):
    """A user's optimizer, whose states have the names that files use for the two forms."""

    entities = ("mg", "variance", "ms")

    def setupState(self, var):
        return {entity: gpuarray.zeros(var.data.shape) for entity in self.entities}

    def updateVar(self, var, state, stream=None):
        for number, entity in enumerate(self.entities):
            state[entity][...] = -number - 1 + var.grad


@pytest.mark.parametrize("entities", [("mg", "variance", "ms"), ("mg", "ms"), ("mg", "variance"), ("ms",)], ids=str)
def test_other_optimizers_states_are_their_own(entities, globalState, tmp_path):
    class Mine(Squares):
        pass

    Mine.entities = entities
    optimizer, other = Mine(), Mine()
    for each in (optimizer, other):
        each.setupOn(net_of(Own, SHAPES), globalState)
    step(Own, optimizer)
    optimizer.save(tmp_path / "run.hdf")
    with h5py.File(tmp_path / "run.hdf") as file:
        names = SHAPES if not globalState else ("float32", "<class 'numpy.float32'>")
        assert set(file[".states"]) == {f"{name}.{entity}" for name in names for entity in entities}
    other.load(tmp_path / "run.hdf")
    expected = content(Own, optimizer)
    for name, state in content(Own, other).items():
        for entity in entities:
            assert np.array_equal(state[entity], expected[name][entity])
            assert state[entity].any()
