"""The effect of each hook, in the update's pass or called directly, in any order, with any rule."""

import math

import numpy as np
import pytest

from puzzlelib_rmsprop import (
    GradientClipping,
    GradientHardClipping,
    GradientScaling,
    Lasso,
    LossScaling,
    NodeInfo,
    NonFiniteGuard,
    Optimizer,
    RMSPropGraves,
    Variable,
    WeightDecay,
)
from puzzlelib_rmsprop.arrays import family_of
from tests.hooks.training import HYPER, WC, assert_same, contents, make_net, set_grads, train
from tests.reference_extended import CLIP, DECAY, LASSO, SCALE, Extended, Statistics, applied, nearest
from tests.standins import Net

COMBINATIONS = {
    "decay": lambda: [WeightDecay(0.1)],
    "lasso": lambda: [Lasso(0.05)],
    "scale": lambda: [GradientScaling(0.3)],
    "clip": lambda: [GradientHardClipping(-0.5, 0.7)],
    "norm": lambda: [GradientClipping(1.5)],
    "clip, decay": lambda: [GradientHardClipping(-0.5, 0.5), WeightDecay(0.1)],
    "decay, clip": lambda: [WeightDecay(0.1), GradientHardClipping(-0.5, 0.5)],
    "loss scale, norm, decay, lasso": lambda: [LossScaling(8.0), GradientClipping(0.2), WeightDecay(0.1), Lasso(0.01)],
    "decay, norm, guard": lambda: [WeightDecay(1.0), GradientClipping(0.5), NonFiniteGuard()],
    "ten": lambda: [GradientScaling(1.01), WeightDecay(0.01)] * 5,
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_in_the_pass_or_one_by_one_is_the_same_to_the_bit(arrays, globalState, name, dtype):
    net, folded = train(arrays, COMBINATIONS[name](), globalState, dtype)
    other, single = train(arrays, COMBINATIONS[name](), globalState, dtype, alone=True)
    assert_same(contents(arrays, net, folded), contents(arrays, other, single))
    if len(folded.hooks) <= 8:
        # the update's pass leaves gradients unchanged; separate calls do not
        set_grads(arrays, last := make_net(arrays, dtype), 4)
        for key, var in last.vars.items():
            assert arrays.get(net.getVar(key).grad).tobytes() == arrays.get(var.grad).tobytes()
        assert any((arrays.get(other.getVar(k).grad) != arrays.get(v.grad)).any() for k, v in last.vars.items())


@pytest.mark.parametrize(
    ("make", "ops"),
    [
        (lambda: [WeightDecay(0.1)], [(DECAY, -0.1, 0, None)]),
        (lambda: [WeightDecay(0.1, gradOfLoss=True)], [(DECAY, 0.1, 0, None)]),
        (lambda: [Lasso(0.05)], [(LASSO, -0.05, 0, None)]),
        (lambda: [Lasso(0.05, gradOfLoss=True)], [(LASSO, 0.05, 0, None)]),
        (lambda: [GradientScaling(-0.3)], [(SCALE, -0.3, 0, None)]),
        (lambda: [GradientHardClipping(-0.5, 0.7)], [(CLIP, -0.5, 0.7, None)]),
        (
            lambda: [GradientScaling(1 / 3), WeightDecay(0.1), GradientHardClipping(-0.2, 0.2)],
            [(SCALE, 1 / 3, 0, None), (DECAY, -0.1, 0, None), (CLIP, -0.2, 0.2, None)],
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_each_is_its_formula(arrays, globalState, make, ops, dtype):
    net, _ = train(arrays, make(), globalState, dtype)
    start, grads = make_net(arrays, dtype), make_net(arrays, dtype)
    for name, var in start.vars.items():
        state = "float64" if dtype == "float64" else "float32"
        expected = Extended(arrays.get(var.data).ravel(), dtype, state, wc=WC[name])
        for step in range(5):
            set_grads(arrays, grads, step)
            expected.step(arrays.get(grads.getVar(name).grad).ravel(), **HYPER, ops=ops)
        actual = arrays.get(net.getVar(name).data).ravel()
        assert np.array_equal(actual, expected.param.astype(dtype)), name


def test_rates_of_hooks_are_live(arrays, globalState):
    net, decay = make_net(arrays), WeightDecay(0.0)
    other, optimizers = make_net(arrays), []
    for each, hooks in ((net, [decay]), (other, [])):
        optimizer = RMSPropGraves(**HYPER)
        for hook in hooks:
            optimizer.addHook(hook)
        optimizer.setupOn(each, globalState)
        set_grads(arrays, each, 0)
        optimizer.update()
        optimizers.append(optimizer)
    assert_same(contents(arrays, net, optimizers[0]), contents(arrays, other, optimizers[1]))
    decay.rate = 0.5
    net.getVar("a.b").wc = 2.0
    expected = {name: arrays.get(var.data) for name, var in net.vars.items()}
    states = {
        name: arrays.get(optimizers[0]._variables[i].state["mg"])
        for i, name in enumerate(s.names[0] for s in optimizers[0]._variables)
    }
    set_grads(arrays, net, 1)
    optimizers[0].update()
    for slot in optimizers[0]._variables:
        name, f = slot.names[0], np.float32
        g = arrays.get(slot.grad) + f(-0.5 * (2.0 if name == "a.b" else WC[name])) * expected[name]
        mg = f(0.9) * states[name] + (f(1) - f(0.9)) * g
        assert np.array_equal(arrays.get(slot.state["mg"]), mg), name


class SGD(Optimizer):
    """A user's own rule, which does not use the library's passes."""

    def updateVar(self, var, state, stream=None):
        family = family_of(var.data)
        family.set(var.data, family.get(var.data) + np.float32(0.1) * family.get(var.grad))


def test_hooks_work_with_a_rule_of_the_users_own(arrays, globalState):
    net, guard, clip = make_net(arrays), NonFiniteGuard(), GradientClipping(0.5)
    optimizer = SGD()
    for hook in (guard, WeightDecay(0.1), clip):
        optimizer.addHook(hook)
    optimizer.setupOn(net, globalState)
    start = {name: arrays.get(var.data) for name, var in net.vars.items()}
    set_grads(arrays, net, 0)
    grads = {name: arrays.get(var.grad) for name, var in net.vars.items()}
    optimizer.update()
    decayed = {n: applied([(DECAY, -0.1, 0, None)], grads[n], start[n], WC[n]) for n in grads}
    record = Statistics()
    record.run(decayed.values(), limit=0.5)
    for name, var in net.vars.items():
        step = decayed[name] * np.float32(record.factor)
        assert np.allclose(arrays.get(var.data), start[name] + np.float32(0.1) * step, rtol=1e-6, atol=0), name
    before = {name: arrays.get(var.data) for name, var in net.vars.items()}
    arrays.put(net.getVar("a.b").grad, np.full((5,), np.nan, np.float32))
    optimizer.update()
    assert guard.skipped == 1
    for name, var in net.vars.items():
        assert arrays.get(var.data).tobytes() == before[name].tobytes()


class Recorder(NodeInfo):
    """A group of one that doubles gradients when it 'averages', to distinguish hooks before and after averaging."""

    def __init__(self, arrays):
        super().__init__()
        self.arrays = arrays

    def sumTensor(self, name, tensor):
        self.arrays.put(tensor, self.arrays.get(tensor) * 2)


def test_statistics_and_what_follows_see_the_average(arrays):
    seen = []
    clip = GradientClipping(1e9)
    hooks = [
        lambda var, state, stream: seen.append(("before", arrays.get(var.grad).copy())),
        GradientScaling(0.5),
        clip,
        lambda var, state, stream: seen.append(("after", arrays.get(var.grad).copy())),
        GradientScaling(3.0),
    ]
    net = Net({"W": arrays.var(np.ones(3, np.float32))})
    optimizer = RMSPropGraves(nodeinfo=Recorder(arrays))
    for hook in hooks:
        optimizer.addHook(hook)
    optimizer.setupOn(net, useGlobalState=True)
    arrays.put(net.getVar("W").grad, np.array([1, 2, 3], np.float32))
    optimizer.update()
    assert [(when, grad.tolist()) for when, grad in seen] == [("before", [1, 2, 3]), ("after", [1, 2, 3])]
    assert clip.norm == pytest.approx(math.sqrt(14))
    assert np.allclose(arrays.get(optimizer._variables[0].state["mg"]), np.array([3, 6, 9]) * 0.05, rtol=1e-6)


def test_hooks_may_change_the_list_of_hooks(globalState):
    def stepped(act):
        net = Net(W=Variable(np.ones(3, np.float32)), b=Variable(np.ones(2, np.float32)))
        optimizer = RMSPropGraves()
        optimizer.setupOn(net, globalState)
        for var in net.vars.values():
            var.wc = 1.0
        act(optimizer)
        optimizer.addHook(WeightDecay(1.0))
        optimizer.update()
        return optimizer, [var.data.copy() for var in net.vars.values()]

    def once(optimizer):
        def hook(var, state, stream):
            if hook in optimizer.hooks:
                optimizer.hooks.remove(hook)

        optimizer.addHook(hook)

    def adding(optimizer):
        optimizer.addHook(lambda var, state, stream: optimizer.addHook(lambda var, state, stream: None))

    _, expected = stepped(lambda optimizer: None)
    for act, left in ((once, 1), (adding, 4)):
        optimizer, found = stepped(act)
        assert all(map(np.array_equal, found, expected))
        assert len(optimizer.hooks) == left


def test_nearest_of_the_oracle_is_numpys():
    assert nearest(np.float32([1.0004, 65519]), "float16").tolist() == [1.0, 65504]
