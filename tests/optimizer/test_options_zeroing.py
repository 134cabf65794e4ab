"""fuseZeroGrad: the update sets the gradients to zero; and zeroing without it."""

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves
from tests.optimizer.options import HYPER, assert_same_nets, make_net, set_grads
from tests.standins import Net


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_zeroing_in_passing_changes_nothing_else(arrays, globalState, dtype):
    nets = [make_net(arrays, dtype) for _ in range(2)]
    optimizers = [RMSPropGraves(**HYPER, fuseZeroGrad=fused) for fused in (True, False)]
    for net, optimizer in zip(nets, optimizers, strict=True):
        optimizer.setupOn(net, globalState)
        net.getVar("a.b").learnRate = 0.0
        for step in range(4):
            optimizer.zeroGradParams()
            for var in net.vars.values():
                assert not arrays.get(var.grad).any()
            set_grads(arrays, net, step)
            optimizer.update()
    assert_same_nets(arrays, *nets, *optimizers)
    for var in nets[0].vars.values():  # the frozen variable too
        assert arrays.get(var.grad).tobytes() == bytes(arrays.get(var.grad).nbytes)
    for var in nets[1].vars.values():
        assert arrays.get(var.grad).any()


def test_only_the_first_zeroing_after_an_update_is_free(arrays, globalState):
    net = make_net(arrays)
    optimizer = RMSPropGraves(**HYPER, fuseZeroGrad=True)
    optimizer.setupOn(net, globalState)
    for _ in range(2):
        set_grads(arrays, net, 0)
        optimizer.update()
        optimizer.zeroGradParams()  # known to be zero
        set_grads(arrays, net, 1)
        optimizer.zeroGradParams()  # a discarded batch
        assert not any(arrays.get(var.grad).any() for var in net.vars.values())


def test_a_replaced_gradient_is_not_taken_for_zero(arrays):
    net = make_net(arrays)
    optimizer = RMSPropGraves(**HYPER, fuseZeroGrad=True)
    optimizer.setupOn(net)
    set_grads(arrays, net, 0)
    optimizer.update()
    net.getVar("a.b").grad = arrays.make(np.ones(5, np.float32))
    optimizer.zeroGradParams()
    assert not arrays.get(net.getVar("a.b").grad).any()


def test_a_failed_update_zeroes_nothing(arrays, globalState):
    def refuse(var, state, stream):
        raise KeyError("no")

    net = make_net(arrays)
    optimizer = RMSPropGraves(**HYPER, fuseZeroGrad=True)
    optimizer.setupOn(net, globalState)
    optimizer.addHook(refuse)
    set_grads(arrays, net, 0)
    with pytest.raises(KeyError):
        optimizer.update()
    assert arrays.get(net.getVar("z").grad).any()
    optimizer.zeroGradParams()
    assert not arrays.get(net.getVar("z").grad).any()


def test_many_gradients_are_zeroed_in_one_call(arrays):
    net = Net({f"v{i}": arrays.var(np.ones(i % 5, np.float32 if i % 3 else np.float16)) for i in range(40)})
    optimizer = RMSPropGraves(**HYPER)
    optimizer.setupOn(net)
    net.getVar("v7").learnRate = 0.0
    for step in range(3):
        before = {name: arrays.get(var.data) for name, var in net.vars.items()}
        set_grads(arrays, net, step)
        optimizer.zeroGradParams()
        for name, var in net.vars.items():
            assert not arrays.get(var.grad).any(), name
            assert arrays.get(var.data).tobytes() == before[name].tobytes(), name
        set_grads(arrays, net, step)
        optimizer.update()
        if step == 1:
            net.getVar("v9").grad = arrays.make(np.full(4, 3, np.float16))
