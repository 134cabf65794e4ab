"""LossScaling: changes of the scale, and dividing by it in the update."""

import numpy as np

from puzzlelib_rmsprop import LossScaling, RMSPropGraves
from tests.conftest import ARRAYS
from tests.hooks.training import HYPER, assert_same, contents, make_net, set_grads, train
from tests.reference_extended import Statistics
from tests.standins import Net


def test_loss_scale_moves_as_its_model(arrays, globalState):
    scaling, model = LossScaling(4.0, growth=2.0, backoff=0.25, interval=3), Statistics(4.0)
    net, optimizer = train(arrays, [scaling], globalState, steps=0)
    for step, bad in enumerate([0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0]):
        set_grads(arrays, net, step)
        if bad:
            arrays.put(net.getVar("z").grad, np.full((1,), np.inf, np.float32))
        optimizer.update()
        model.run([arrays.get(var.grad) for var in net.vars.values()], growth=2.0, backoff=0.25, interval=3)
        assert scaling.getState() == {"scale": model.scale, "good": model.good, "skipped": model.skipped}, step
    assert scaling.skipped == 3


def test_the_loss_scale_is_taken_out_again(arrays, globalState):
    # scaling by powers of two rounds nothing: the same bits
    net, scaling = make_net(arrays), LossScaling(2.0**10, interval=2)
    optimizer = RMSPropGraves(**HYPER)
    optimizer.addHook(scaling)
    optimizer.setupOn(net, globalState)
    for step in range(5):
        set_grads(arrays, net, step)
        for var in net.vars.values():
            assert scaling.scaleGrad(var.grad) is var.grad
        optimizer.update()
    assert scaling.scale == 2.0**12
    other, plain = train(arrays, [], globalState)
    assert_same(contents(arrays, net, optimizer), contents(arrays, other, plain))


def test_a_loss_scale_for_an_array_of_another_family(arrays, globalState):
    # the record moves to the other device and back; older statistics must not use its former memory
    net, scaling = make_net(arrays), LossScaling(8.0, backoff=0.5)
    optimizer = RMSPropGraves(**HYPER)
    optimizer.addHook(scaling)
    optimizer.setupOn(net, globalState)
    other = next(each for name, each in ARRAYS.items() if name in ("own", "numpy") and each.name != arrays.name)
    held = []
    for step in range(1, 4):
        set_grads(arrays, net, 0, np.inf)
        optimizer.update()
        assert (scaling.skipped, scaling.scale) == (step, 8.0 * 0.5**step)
        held.append(scaling._record)  # otherwise new memory might reuse the old address
        assert (other.get(scaling.scaleGrad(other.make(np.ones(3, np.float32)))) == 8.0 * 0.5**step).all()
        held.append(scaling._record)


def test_loss_scaling_keeps_what_float16_loses(arrays):
    # gradients of 1e-6 lie between float16's subnormals; a thousand times as large they are exact to three digits
    steps = {}
    for scaled in (False, True):
        net = Net({"W": arrays.var(np.zeros(4, np.float16))})
        optimizer = RMSPropGraves(1e-3, epsilon=1e-12)
        scaling = LossScaling(1024.0)
        if scaled:
            optimizer.addHook(scaling)
        optimizer.setupOn(net)
        true = np.array([1.01e-6, -2.49e-8, 3.3e-7, 1e-5])
        arrays.put(net.getVar("W").grad, (true * (scaling.scale if scaled else 1)).astype(np.float16))
        optimizer.update()
        steps[scaled] = arrays.get(optimizer.states["W"]["mg"]) / 0.05 / true
    assert np.allclose(steps[True], 1, rtol=2e-3)
    assert not np.allclose(steps[False], 1, rtol=2e-2)
