"""WeightDecay and Lasso take the sign of the gradients from the optimizer that runs them."""

import copy
import threading

import numpy as np
import pytest

from puzzlelib_rmsprop import Lasso, Optimizer, RMSPropGraves, Variable, WeightDecay
from puzzlelib_rmsprop.arrays import family_of
from tests.conftest import ARRAYS
from tests.hooks.training import HYPER, assert_same, contents, make_net, set_grads
from tests.standins import Net


class OwnRule(Optimizer):
    """A user's optimizer that defines ``gradOfLoss``."""

    def __init__(self, gradOfLoss):
        super().__init__()
        self.gradOfLoss = gradOfLoss

    def updateVar(self, var, state, stream=None):
        family = family_of(var.data)
        step = (-1 if self.gradOfLoss else 1) * np.float32(0.1) * family.get(var.grad)
        family.set(var.data, family.get(var.data) + step.astype(family.dtype(var.data)))


class NotFused(RMSPropGraves):
    def updateVar(self, var, state, stream=None):
        super().updateVar(var, state, stream)


class Halved(WeightDecay):
    def __call__(self, var, state, stream=None):
        super().__call__(var, state, stream)


def graves(gradOfLoss):
    return RMSPropGraves(**HYPER, gradOfLoss=gradOfLoss)


def foreign(var, state, stream=None):
    pass


PATHS = {
    "fused": (graves, lambda decay: [decay]),
    "in front of a foreign hook": (graves, lambda decay: [decay, foreign]),
    "behind a foreign hook": (graves, lambda decay: [foreign, decay]),
    "in a function": (graves, lambda decay: [lambda var, state, stream: decay(var, state, stream)]),
    "in an optimizer of one's own": (OwnRule, lambda decay: [decay]),
    "in a subclass": (lambda gradOfLoss: NotFused(**HYPER, gradOfLoss=gradOfLoss), lambda decay: [decay]),
    "ten of them": (graves, lambda decay: [decay] * 10),
}
DECAYS = {"decay": WeightDecay, "lasso": Lasso, "a subclass": Halved}


def trained(arrays, globalState, make, hooks, gradOfLoss, steps=3, scale=1.0):
    net, optimizer = make_net(arrays), make(gradOfLoss)
    for hook in hooks:
        optimizer.addHook(hook)
    optimizer.setupOn(net, globalState)
    for step in range(steps):
        set_grads(arrays, net, step, -scale if gradOfLoss else scale)
        optimizer.update()
    return {name: arrays.get(var.data) for name, var in net.vars.items()}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", DECAYS)
def test_the_sign_is_the_optimizers(arrays, globalState, kind, path):
    make, hooks = PATHS[path]
    decay = DECAYS[kind](0.1)
    one, other = (trained(arrays, globalState, make, hooks(decay), sign) for sign in (False, True))
    assert_same(one, other)
    # only decay: towards zero
    start = trained(arrays, globalState, make, [], False, steps=0)
    for sign in (False, True):
        found = trained(arrays, globalState, make, hooks(DECAYS[kind](1e-3)), sign, scale=0.0)
        assert (np.abs(found["a.W"]) < np.abs(start["a.W"])).all()
        assert np.array_equal(found["a.b"], start["a.b"])  # wc 0


@pytest.mark.parametrize("path", PATHS)
def test_a_sign_that_is_given_wins(arrays, globalState, path):
    make, hooks = PATHS[path]
    given = {
        (own, sign): trained(arrays, globalState, make, hooks(WeightDecay(0.1, gradOfLoss=own)), sign)
        for own in (False, True, None)
        for sign in (False, True)
    }
    for sign in (False, True):
        assert_same(given[sign, sign], given[None, sign])
        assert (given[not sign, sign]["a.W"] != given[None, sign]["a.W"]).any()


def test_the_sign_may_change_after_the_hook_was_added(arrays, globalState):
    net, optimizer = make_net(arrays), graves(False)
    optimizer.setupOn(net, globalState)
    optimizer.hooks.append(WeightDecay(1e-3))  # without addHook
    for sign in (True, False, True):
        optimizer.gradOfLoss = sign
        optimizer.setupOn(net, globalState)  # resets the momentum
        set_grads(arrays, net, 0, 0.0)
        before = arrays.get(net.getVar("a.W").data)
        optimizer.update()
        assert (np.abs(arrays.get(net.getVar("a.W").data)) < np.abs(before)).all()


def test_a_call_by_hand_has_the_sign_of_puzzlelib(arrays, globalState):
    def called(hook):
        var = arrays.var(np.ones(3, np.float32))
        var.wc = 1.0
        hook(var, {})
        return arrays.get(var.grad).tolist()

    net, optimizer = make_net(arrays), graves(True)
    optimizer.setupOn(net, globalState)
    optimizer.addHook(WeightDecay(0.5))
    for hook in (foreign, lambda var, state, stream: 1 / 0):
        assert called(WeightDecay(0.5)) == called(Lasso(0.5)) == [-0.5] * 3
        assert called(WeightDecay(0.5, gradOfLoss=True)) == [0.5] * 3
        optimizer.addHook(hook)
        if hook is foreign:
            optimizer.update()
        else:
            with pytest.raises(ZeroDivisionError):
                optimizer.update()
    assert called(WeightDecay(0.5)) == [-0.5] * 3


@pytest.mark.parametrize("kind", DECAYS)
def test_two_optimizers_of_one_hook_take_turns(arrays, globalState, kind):
    decay = DECAYS[kind](0.1)
    expected = trained(arrays, globalState, graves, [DECAYS[kind](0.1)], False)
    made = []
    for sign in (False, True):
        net, optimizer = make_net(arrays), graves(sign)
        optimizer.addHook(decay)
        optimizer.setupOn(net, globalState)
        made.append((net, optimizer, sign))
    for step in range(3):
        for net, optimizer, sign in made:
            set_grads(arrays, net, step, -1.0 if sign else 1.0)
            optimizer.update()
    for net, _, _ in made:
        assert_same({name: arrays.get(var.data) for name, var in net.vars.items()}, expected)


def test_two_optimizers_of_one_hook_in_two_threads(globalState):
    barrier = threading.Barrier(2, timeout=30)

    class Meeting(WeightDecay):
        def __call__(self, var, state, stream=None):
            barrier.wait()  # both threads are running their hooks
            super().__call__(var, state, stream)
            barrier.wait()

    decay, found = Meeting(0.1), {}

    def train(sign):
        var = Variable(np.ones(5, np.float32))
        var.wc = 1.0
        optimizer = graves(sign)
        optimizer.addHook(decay)
        optimizer.setupOn(Net(w=var), globalState)
        for _ in range(3):
            optimizer.update()
        found[sign] = var.data.tolist()

    threads = [threading.Thread(target=train, args=(sign,)) for sign in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[False] == found[True]
    assert found[True][0] < 1


def test_an_optimizer_inside_a_hook_has_its_own_sign(arrays):
    decay, inner_net, inner = WeightDecay(1e-3), make_net(arrays), graves(True)
    inner.addHook(decay)
    inner.setupOn(inner_net)
    net, optimizer = make_net(arrays), graves(False)

    def nested(var, state, stream):
        if var is net.getVar("z"):
            inner.update()

    for hook in (decay, nested, decay, foreign):
        optimizer.addHook(hook)
    optimizer.setupOn(net)
    start = make_net(arrays)
    optimizer.update()
    for each in (net, inner_net):
        found, first = (arrays.get(n.getVar("a.W").data) for n in (each, start))
        assert (np.abs(found) < np.abs(first)).all()


def test_a_hook_without_the_arguments_of_this_version(arrays):
    # from a subclass with its own __init__, or pickled by an older version
    class Old(WeightDecay):
        def __init__(self, rate):
            self.rate = rate

    pickled = WeightDecay(0.1)
    del vars(pickled)["decoupled"], vars(pickled)["gradOfLoss"]
    expected = trained(arrays, False, graves, [WeightDecay(0.1)], True)
    for hook in (Old(0.1), pickled):
        assert_same(trained(arrays, False, graves, [hook], True), expected)


def test_a_copy_of_the_optimizer_decays_as_it_does():
    arrays = ARRAYS["numpy"]
    net, optimizer = make_net(arrays), graves(True)
    optimizer.addHook(WeightDecay(0.1))
    optimizer.setupOn(net)
    other = copy.deepcopy(optimizer)
    for each in (optimizer, other):
        set_grads(arrays, each.module, 0)
        each.update()
    assert_same(contents(arrays, net, optimizer), contents(arrays, other.module, other))
