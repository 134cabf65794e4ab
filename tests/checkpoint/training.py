"""Shared by the tests of files: trainings whose state is saved and loaded, and the expected content of a file."""

import h5py
import numpy as np

from puzzlelib_rmsprop import RMSPropGraves, Variable, gpuarray
from puzzlelib_rmsprop.checkpoint import OptimizerState, VariableLayout, read, write
from tests.standins import Net

BUFFERS = ("mg", "variance", "delta")
FILED = (*BUFFERS, "ms")  # the entities in a file for each variable


def net_of(arrays, shapes, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return Net({name: arrays.var(rng.standard_normal(shape).astype(dtype)) for name, shape in shapes.items()})


def trained(arrays, globalState, shapes, dtype="float32", steps=3, seed=0):
    net = net_of(arrays, shapes, dtype, seed)
    optimizer = RMSPropGraves(learnRate=1e-2)
    optimizer.setupOn(net, globalState)
    step(arrays, optimizer, steps, seed)
    return optimizer


def step(arrays, optimizer, steps=1, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        for name in sorted(optimizer.module.vars):
            grad = optimizer.module.getVar(name).grad
            arrays.put(grad, rng.standard_normal(grad.shape))
        optimizer.update()


def content(arrays, optimizer):
    return {
        slot.names[0]: {entity: arrays.get(array) for entity, array in slot.state.items()} for slot in optimizer._variables
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        for entity in BUFFERS:
            assert np.array_equal(first[name][entity], second[name][entity]), f"{name}: {entity}"


SHAPES = {"b.W": (4, 3), "b.b": (3,), "a.W": (2, 4), "a.b": (5,)}


def variance_of(mg, ms, dtype=np.float32):
    """Returns the variance that is computed from a mean square."""
    return np.maximum(ms.astype(np.float64) - mg.astype(np.float64) ** 2, 0).astype(dtype)


def in_file(path, shapes, entities=("mg", "ms", "delta")):
    """Returns a file's state of each variable, read without the library: with h5py, in PuzzleLib's order."""
    with h5py.File(path) as file:
        found = {}
        for entity in entities:
            begin = 0
            for name in sorted(shapes):
                size = int(np.prod(shapes[name]))
                if f".states/{name}.{entity}" in file:
                    values = file[f".states/{name}.{entity}"][()]
                else:
                    values = file[f".states/<class 'numpy.float32'>.{entity}"][begin : begin + size].reshape(shapes[name])
                found.setdefault(name, {})[entity] = values
                begin += size
    return found


class Own:
    """The library's own arrays, for tests that need only one family."""

    @staticmethod
    def var(values):
        return Variable(gpuarray.to_gpu(values))

    @staticmethod
    def get(array):
        return array.get()

    @staticmethod
    def put(array, values):
        array[...] = values


def loaded_into(path, shapes=SHAPES, globalState=False, dtype="float32"):
    """Loads into a trained optimizer; if that fails, checks that the optimizer is unchanged."""
    optimizer = trained(Own, globalState, shapes, dtype, seed=5)
    before, attrs = content(Own, optimizer), optimizer.getAttrDict()
    try:
        optimizer.load(path)
    except Exception:
        assert_same(content(Own, optimizer), before)
        assert optimizer.getAttrDict() == attrs
        raise
    return optimizer


VALUES = np.array([0.0, -0.0, 1.0, -1.5, 3.1415927, 1e-30, 65000.0, 1e30], np.float32)


def place(dtype, entities=BUFFERS, shape=VALUES.shape, forms=()):
    state = {entity: (shape, np.dtype(np.float32) if entity == "master" else np.dtype(dtype)) for entity in entities}
    return VariableLayout(["W"], shape, np.dtype(np.float32), 0, state, forms)


def through(path, state, saved, wanted):
    write(path, "", OptimizerState({"t": 1}, [saved], {"W": state}))
    (found,) = read(path, "", {"t": 0}, [wanted]).states
    return found


def states_of(optimizer):
    return [*optimizer.states.values(), *(slot.state for slot in optimizer._variables)]
