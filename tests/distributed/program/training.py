"""Checks of training: a step of the group equals that of a single process with the mean gradient."""

import numpy as np

from puzzlelib_rmsprop import RMSPropGraves, WeightDecay, gpuarray
from puzzlelib_rmsprop.nets import MSE, Activation, Linear, Sequential, relu
from tests.distributed.program.group import RANK, SIZE, WORLD, check, equal, families, group, same_bits
from tests.distributed.program.nets import DTYPES, SHAPES, content, put, some_net, train
from tests.reference import Reference


@check
def training_is_that_of_the_mean_gradient():
    """If the sums are exact, parameters and state agree bit for bit, on every process and after every step."""
    for name in families():
        with group() as node:
            net = some_net(RANK, name)  # each process starts with other parameters: those of process 0 are used
            optimizer = RMSPropGraves(learnRate=0.01, nodeinfo=node)
            optimizer.setupOn(net, useGlobalState=True)
            net.getVar("fc1.b").learnRate, net.getVar("fc0.b").momRate = 0.0, 0.5
            alone, lonely = some_net(0, name), RMSPropGraves(learnRate=0.01)
            lonely.setupOn(alone, useGlobalState=True)
            alone.getVar("fc1.b").learnRate, alone.getVar("fc0.b").momRate = 0.0, 0.5
            expected = {n: Reference(content(some_net().getVar(n).data)) for n in SHAPES}
            for means in train(optimizer, net, RMSPropGraves.update):
                for n, mean in means.items():
                    put(alone.getVar(n).grad, mean)
                    if n != "fc1.b":
                        expected[n].step(mean, learnRate=0.01, momRate=0.45 if n == "fc0.b" else 0.9)
                lonely.update()
                for n in SHAPES:
                    found = content(net.getVar(n).data)
                    assert same_bits(found), n
                    assert equal(found, content(alone.getVar(n).data)), n
                    tolerance = 1e-2 if n == "half.W" else 2e-6
                    assert np.abs(found - expected[n].param).max() <= tolerance * np.abs(expected[n].param).max(), n
            for dtype, state in optimizer.states.items():
                for entity, array in state.items():
                    assert equal(content(array), content(lonely.states[dtype][entity])), (dtype, entity)


@check
def batches_of_all_processes_are_one_large_batch():
    """Gradients averaged over N batches of size B equal those of one batch of N*B, except for the order of sums."""
    batch, features = 6, 5
    rng = np.random.default_rng(12)
    data = rng.standard_normal((3, SIZE * batch, features)).astype(np.float32)
    target = rng.standard_normal((3, SIZE * batch, 2)).astype(np.float32)

    def build():
        np.random.seed(3)
        return Sequential().append(Linear(features, 4)).append(Activation(relu)).append(Linear(4, 2))

    def step(net, optimizer, x, y):
        _, grad = MSE()(net(gpuarray.to_gpu(x)), gpuarray.to_gpu(y))
        optimizer.zeroGradParams()
        net.backward(grad)
        grads = {name: content(net.getVar(name).grad) for names in net.getVarTable().values() for name in names}
        optimizer.update()
        return grads

    with group() as node:
        net, alone = build(), build()
        optimizer, lonely = RMSPropGraves(learnRate=0.01, nodeinfo=node), RMSPropGraves(learnRate=0.01)
        optimizer.setupOn(net, useGlobalState=True)
        lonely.setupOn(alone, useGlobalState=True)
        own = slice(RANK * batch, (RANK + 1) * batch)
        for x, y in zip(data, target, strict=True):
            # starts each step from equal values, to bound the error of one step
            for name in (name for names in net.getVarTable().values() for name in names):
                put(alone.getVar(name).data, content(net.getVar(name).data))
            grads, whole = step(net, optimizer, x[own], y[own]), step(alone, lonely, x, y)
            for name, expected in whole.items():
                every = WORLD.allgather(grads[name])
                found = content(net.getVar(name).grad)
                assert same_bits(content(net.getVar(name).data)), name
                # a gradient is a sum over the batch, of products over the layers: errors are relative to the sum of the
                # magnitudes, which the largest gradient of a process times SIZE stands for here
                scale = SIZE * max(np.abs(grad).max() for grad in [*every, expected])
                assert np.abs(found - expected).max() <= (SIZE * batch + 16) * 2**-24 * scale, name


@check
def a_nan_is_seen_by_all():
    with group() as node:
        net = some_net()
        optimizer = RMSPropGraves(nodeinfo=node)
        optimizer.setupOn(net, useGlobalState=True)
        if RANK == SIZE - 1:
            grad = content(net.getVar("fc0.W").grad)
            grad[1, 2] = np.nan
            put(net.getVar("fc0.W").grad, grad)
        optimizer.update()
        found = content(net.getVar("fc0.W").data)
        assert np.isnan(found[1, 2])
        assert np.isnan(found).sum() == 1


@check
def hooks_come_before_the_average():
    with group() as node:
        net = some_net()
        for n in SHAPES:
            net.getVar(n).wc = 1.0
        before = {n: content(net.getVar(n).data) for n in SHAPES}
        optimizer = RMSPropGraves(nodeinfo=node)
        optimizer.setupOn(net, useGlobalState=True)
        optimizer.addHook(WeightDecay(0.5))
        seen = []
        optimizer.addHook(lambda var, state, stream: seen.append((var.grad.shape, state["mg"].shape)))
        optimizer.update()
        assert seen == [(SHAPES[n], SHAPES[n]) for n in sorted(SHAPES)]
        for n in SHAPES:
            expected = Reference(before[n], stored=DTYPES.get(n, np.float32))
            expected.step(-0.5 * before[n].astype(np.float64))
            found = content(net.getVar(n).data)
            assert np.abs(found - expected.param).max() <= 2e-3 * np.abs(expected.param).max(), n
            assert same_bits(found), n
