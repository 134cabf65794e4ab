"""Shared by the tests of RMSPropGraves' options: a small net, its gradients, and the values to compare."""

import numpy as np

from tests.standins import Net

HYPER = {"learnRate": 1e-2, "alpha": 0.9, "momRate": 0.8, "epsilon": 1e-4}
SHAPES = {"a.W": (37, 29), "a.b": (5,), "z": (1,)}


def make_net(arrays, dtype="float32", seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return Net({name: arrays.var(rng.standard_normal(shape).astype(dtype)) for name, shape in shapes.items()})


def set_grads(arrays, net, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    for name in sorted(net.vars):
        grad = net.getVar(name).grad
        arrays.put(grad, (rng.standard_normal(arrays.shape(grad)) * scale).astype(arrays.dtype(grad)))


def states_of(arrays, optimizer):
    """Returns the states by name, 8-bit state decoded to float32."""
    return {slot.names[0]: {e: read(arrays, a) for e, a in slot.state.items()} for slot in optimizer._variables}


def read(arrays, array):
    return array.get() if type(array).__name__ == "QuantizedArray" else arrays.get(array)


def assert_same_nets(arrays, a, b, *optimizers):
    for name in a.vars:
        assert arrays.get(a.getVar(name).data).tobytes() == arrays.get(b.getVar(name).data).tobytes(), name
    if optimizers:
        one, other = (states_of(arrays, optimizer) for optimizer in optimizers)
        for name in one:
            for entity in one[name]:
                assert one[name][entity].tobytes() == other[name][entity].tobytes(), (name, entity)


# ------------------------------------------------------------------------------------ bfloat16 state


def takes_bfloat16(arrays, dtype="float32"):
    """Returns whether parameters of ``dtype`` can have bfloat16 state."""
    protocols = ("dlpack", "cuda-interface2", "cuda-interface3")  # these do not support it
    return arrays.name not in ("puzzlelib", "puzzlelib-cuda") and (arrays.name not in protocols or dtype != "bfloat16")


def seeds(seed, t):
    """Returns output number t of SplitMix64, as published by its authors."""
    z = (seed + t * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    z = z ^ (z >> 31)
    return z & 0xFFFFFFFF, z >> 32
