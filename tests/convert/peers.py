"""Shared by the tests of conversions: states of other libraries, and an optimizer that imports them."""

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves, convert
from tests.checkpoint.training import Own
from tests.standins import Net

SHAPES = {"fc0.W": (3, 4), "fc0.b": (3,)}
STATES = {"chainer": ["chainer_state.npz", "chainer_state.h5"], "nnabla": ["nnabla_state.h5"]}
FROM = {"chainer": convert.fromChainer, "nnabla": convert.fromNnabla}
TO = {"chainer": convert.toChainer, "nnabla": convert.toNnabla}


def ours(params, globalState, gradOfLoss=True, dtype=np.float32, **hyper):
    optimizer = RMSPropGraves(gradOfLoss=gradOfLoss, **hyper)
    optimizer.setupOn(Net({name: Own.var(np.asarray(value, dtype)) for name, value in params.items()}), globalState)
    return optimizer


def take_steps(optimizer, grads, rows, sign=1):
    for row in rows:
        for name, values in grads.items():
            Own.put(optimizer.module.getVar(name).grad, sign * values[row])
        optimizer.update()


def states(optimizer):
    return {slot.names[0]: {entity: Own.get(array) for entity, array in slot.state.items()} for slot in optimizer._variables}


def unchanged(optimizer, call):
    before, attrs = states(optimizer), optimizer.getAttrDict()
    try:
        call()
    finally:
        for name, state in before.items():
            for entity, array in state.items():
                assert np.array_equal(states(optimizer)[name][entity], array)
        assert optimizer.getAttrDict() == attrs


def torch_like(params, steps=3, momentum=0.5, indices=None, **group):
    """A state_dict as from PyTorch, with NumPy arrays."""
    rng = np.random.default_rng(1)
    state = {}
    for index, shape in enumerate(params.values()):
        mean = rng.standard_normal(shape).astype(np.float32)
        state[index] = {"step": steps, "grad_avg": mean, "square_avg": mean**2 + rng.random(shape).astype(np.float32)}
        if momentum:
            state[index]["momentum_buffer"] = rng.standard_normal(shape).astype(np.float32)
    group = {"lr": 0.25, "alpha": 0.9, "momentum": momentum, "eps": 1e-3, "centered": True, **group}
    return {"state": state, "param_groups": [{**group, "params": list(state) if indices is None else indices}]}


def plain_momentum():
    return ours({name: np.zeros(shape) for name, shape in SHAPES.items()}, False, momRate=0.0)
