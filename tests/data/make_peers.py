"""Writes what a peer computes and saves: run it with a Python that has chainer or nnabla. See README.md."""

import sys

import numpy as np

SHAPES = {"fc0/W": (3, 4), "fc0/b": (3,)}
HYPER = {"lr": 1e-2, "momentum": 0.8, "eps": 1e-3}
DECAY = 0.9
rng = np.random.default_rng(5)
init = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
grads = {name: rng.standard_normal((20, *shape)).astype(np.float32) for name, shape in SHAPES.items()}


def chainer():
    import chainer

    chain = chainer.Chain()
    with chain.init_scope():
        chain.fc0 = chainer.Chain()
        with chain.fc0.init_scope():
            chain.fc0.W, chain.fc0.b = (chainer.Parameter(init[f"fc0/{each}"].copy()) for each in "Wb")
    optimizer = chainer.optimizers.RMSpropGraves(alpha=DECAY, **HYPER).setup(chain)
    params = {"fc0/W": chain.fc0.W, "fc0/b": chain.fc0.b}

    def step(number):
        for name, param in params.items():
            param.grad = grads[name][number].copy()
        optimizer.update()

    def save():
        chainer.serializers.save_npz("chainer_state.npz", optimizer)
        chainer.serializers.save_hdf5("chainer_state.h5", optimizer)

    return step, save, lambda name: params[name].array.copy()


def nnabla():
    import nnabla
    import nnabla.solvers

    params = {name: nnabla.Variable.from_numpy_array(value.copy()) for name, value in init.items()}
    for param in params.values():
        param.need_grad = True
    solver = nnabla.solvers.RMSpropGraves(decay=DECAY, **HYPER)
    solver.set_parameters(params)

    def step(number):
        for name, param in params.items():
            param.g = grads[name][number]
        solver.update()

    return step, lambda: solver.save_states("nnabla_state.h5"), lambda name: params[name].d.copy()


peer = sys.argv[1]
step, save, param = {"chainer": chainer, "nnabla": nnabla}[peer]()
found = {"alpha": DECAY, **HYPER}
for number in range(20):
    if number == 10:
        save()
        found |= {f"half.{name}": param(name) for name in SHAPES}
    step(number)
found |= {f"final.{name}": param(name) for name in SHAPES} | {f"grads.{name}": value for name, value in grads.items()}
np.savez(f"{peer}_steps.npz", **found)
