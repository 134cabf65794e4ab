"""Shared by the tests of hooks: a small net with weight decay, its gradients, and comparisons."""

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves
from tests.standins import Net

HYPER = {"learnRate": 1e-2, "alpha": 0.9, "momRate": 0.8, "epsilon": 1e-4}
SHAPES = {"a.W": (7, 5), "a.b": (5,), "z": (1,)}
WC = {"a.W": 1.0, "a.b": 0.0, "z": 0.5}


def make_net(arrays, dtype="float32", seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    dtypes = dtype if isinstance(dtype, dict) else dict.fromkeys(shapes, dtype)
    net = Net({name: arrays.var(rng.standard_normal(shape).astype(dtypes[name])) for name, shape in shapes.items()})
    for name, var in net.vars.items():
        var.wc = WC[name]
    return net


def set_grads(arrays, net, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    for name in sorted(net.vars):
        grad = net.getVar(name).grad
        arrays.put(grad, (rng.standard_normal(arrays.shape(grad)) * scale).astype(arrays.dtype(grad)))


def contents(arrays, net, optimizer):
    found = {name: arrays.get(var.data) for name, var in net.vars.items()}
    for key, state in optimizer.states.items():
        found |= {f"{key} {entity}": arrays.get(array) for entity, array in state.items()}
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].tobytes() == b[key].tobytes(), key


def train(arrays, hooks, globalState, dtype="float32", steps=5, alone=False, scale=1.0, **options):
    net = make_net(arrays, dtype)
    optimizer = RMSPropGraves(**HYPER, **options)
    for hook in hooks:
        optimizer.addHook(hook)
    if alone:
        # a user's hook: the hooks before it must change the gradients themselves
        optimizer.addHook(lambda var, state, stream: None)
    optimizer.setupOn(net, globalState)
    for step in range(steps):
        set_grads(arrays, net, step, scale)
        optimizer.update()
    return net, optimizer
