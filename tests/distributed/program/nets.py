"""A net that is equal on every process, its gradients, and its training."""

import numpy as np

from puzzlelib_rmsprop import Variable
from tests import standins
from tests.distributed.program.group import RANK, SIZE, families, in_order
from tests.standins import Net

SHAPES = {"fc0.W": (5, 7), "fc0.b": (7,), "fc1.W": (7, 3), "fc1.b": (3,), "half.W": (9,), "double.W": (4, 2)}
DTYPES = {"half.W": np.float16, "double.W": np.float64}


def some_net(rank=0, name=None):
    make = families()[name or next(iter(families()))][0]
    wrap = standins.PuzzleVariable if (name or "").startswith("puzzlelib") else Variable
    rng = np.random.default_rng([10, rank])
    return Net({n: wrap(make(rng.standard_normal(shape).astype(DTYPES.get(n, np.float32)))) for n, shape in SHAPES.items()})


def content(array):
    return array.get() if hasattr(array, "get") else np.array(array)


def put(array, values):
    if hasattr(array, "set"):
        array.set(np.ascontiguousarray(values.astype(array.dtype)))
    else:
        array[...] = values


def train(optimizer, net, step, steps=5, exact=True):
    """Sets gradients that differ from process to process and updates; yields after every step with the mean gradients."""
    for number in range(steps):
        means = {}
        for name, shape in SHAPES.items():
            parts = [np.random.default_rng([11, number, rank, len(name)]).standard_normal(shape) for rank in range(SIZE)]
            dtype = DTYPES.get(name, np.float32)
            parts = [(np.round(part * 64) / 64 if exact else part).astype(dtype) for part in parts]
            put(net.getVar(name).grad, parts[RANK])
            means[name] = in_order(parts)
        step(optimizer)
        yield means
