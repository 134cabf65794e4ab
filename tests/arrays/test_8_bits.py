"""8-bit state in every array family: codes and scales are arrays of the net's family, with the same bits as in NumPy."""

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves, Variable
from puzzlelib_rmsprop.arrays import family_of
from tests.standins import Net

SHAPES = {"a": (130,), "b": (3, 50), "c": (), "d": (0, 2), "e": (64,)}
STATE = ("mg", "variance", "delta")


def content_of(step, shape):
    return np.asarray(np.random.default_rng([step, *shape]).standard_normal(shape), np.float32)


class Training:
    """A net with arrays of one family, its optimizer, and training steps."""

    def __init__(self, make_variable, put, globalState):
        self.put = put
        self.net = Net({name: make_variable(content_of(0, shape)) for name, shape in SHAPES.items()})
        self.optimizer = RMSPropGraves(1e-2, stateDtype="int8", seed=5)
        self.optimizer.setupOn(self.net, globalState)

    def steps(self, first, last):
        for step in range(first, last):
            for name, shape in SHAPES.items():
                self.put(self.net.getVar(name).grad, content_of(step, shape))
            self.optimizer.update()

    def everything(self):
        """Returns the bytes of parameters, codes and scales."""
        found = {}
        for key, state in self.optimizer.states.items():
            for entity in STATE:
                array = state[entity]
                family = family_of(array.codes)
                found[key, entity] = family.get(array.codes).tobytes(), family.get(array.scales).tobytes()
        for name, var in self.net.vars.items():
            found[name] = family_of(var.data).get(var.data).tobytes()
        return found


def numpys(globalState):
    return Training(lambda content: Variable(content.copy()), np.copyto, globalState)


@pytest.fixture
def training(arrays, globalState):
    return Training(arrays.var, arrays.put, globalState)


def test_codes_and_scales_are_of_the_nets_family(training, arrays):
    (key, state) = next(iter(training.optimizer.states.items()))
    family = family_of(training.net.getVar("a").data)
    for entity in STATE:
        for array in (state[entity].codes, state[entity].scales):
            assert family.takes(family_of(array)), key
            assert family_of(array).dtype(array) == np.uint8


def test_the_bits_of_numpys(training, globalState):
    expected = numpys(globalState)
    for each in (expected, training):
        each.steps(1, 5)
    assert training.everything() == expected.everything()
    assert any(any(codes) for codes, _ in map(expected.everything().get, [(key, "mg") for key in expected.optimizer.states]))


def test_read_and_written_as_float32(training, globalState):
    expected = numpys(globalState)
    for each in (expected, training):
        each.steps(1, 3)
        for state in each.optimizer.states.values():
            for entity in STATE:
                array = state[entity]
                assert array.get().shape == tuple(array.shape)
                array.set(array.get() * np.float32(0.7))
        each.steps(3, 5)
    assert training.everything() == expected.everything()


@pytest.mark.parametrize("into", [False, True], ids=["into local", "into global"])
def test_saved_and_loaded(training, arrays, into, tmp_path):
    training.steps(1, 4)
    training.optimizer.save(str(tmp_path / "state.hdf"), "o")
    other = Training(arrays.var, arrays.put, into)
    for name, var in training.net.vars.items():
        other.put(other.net.getVar(name).data, arrays.get(var.data))
    other.optimizer.load(str(tmp_path / "state.hdf"), "o")
    for each in (training, other):
        each.steps(4, 6)
    ends = [{name: each.everything()[name] for name in SHAPES} for each in (training, other)]
    assert ends[0] == ends[1]
