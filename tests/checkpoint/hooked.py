"""Shared by the tests of settings: a net with hooks, trained, saved and loaded."""

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves
from tests.conftest import ARRAYS
from tests.standins import Net

OWN = ARRAYS["own"]

SHAPES = {"w": (3, 2), "b": (2,), "half": (4,)}


def made(arrays, globalState, hooks=(), **options):
    net = Net({name: arrays.var(np.full(shape, 0.5, np.float32)) for name, shape in SHAPES.items()})
    optimizer = RMSPropGraves(**options)
    for hook in hooks:
        optimizer.addHook(hook)
    optimizer.setupOn(net, globalState)
    return net, optimizer


def trained(arrays, net, optimizer, steps=3):
    for seed in range(steps):
        rng = np.random.default_rng(seed)
        for name in sorted(net.vars):
            arrays.put(net.getVar(name).grad, rng.standard_normal(SHAPES[name]).astype(np.float32))
        optimizer.update()
    return {name: arrays.get(net.getVar(name).data) for name in SHAPES}


def copied(arrays, source, target):
    for name in SHAPES:
        arrays.put(target.getVar(name).data, arrays.get(source.getVar(name).data))


def rates(net):
    return {name: (var.learnRate, var.momRate, var.wc) for name, var in net.vars.items()}
