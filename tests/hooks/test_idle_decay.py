"""One warning, with the remedy, for decay that has no effect, and none if it only seems so."""

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, Lasso, LossScaling, NonFiniteGuard, RMSPropGraves, WeightDecay
from puzzlelib_rmsprop.errors import SetupWarning
from tests.hooks.training import HYPER, make_net

# every other warning of these tests is an error


def made(arrays, globalState, hooks, wc=0.0):
    net, optimizer = make_net(arrays), RMSPropGraves(**HYPER)
    for var in net.vars.values():
        var.wc = wc
    for hook in hooks:
        optimizer.addHook(hook)
    optimizer.setupOn(net, globalState)
    return net, optimizer


def foreign(var, state, stream=None):
    pass


class Mine(WeightDecay):
    """One with its own rate."""


HOOKS = {
    "decay": (lambda: [WeightDecay(0.1)], r"WeightDecay\(0\.1\)"),
    "decoupled": (lambda: [WeightDecay(0.1, decoupled=True)], r"WeightDecay\(0\.1\)"),
    "lasso": (lambda: [Lasso(0.1)], r"Lasso\(0\.1\)"),
    "in front of a foreign hook": (lambda: [WeightDecay(0.1), foreign], r"WeightDecay\(0\.1\)"),
    "a subclass": (lambda: [Mine(0.1)], r"Mine\(0\.1\)"),
    "two, of one kind": (lambda: [WeightDecay(0.1), WeightDecay(0.2)], r"WeightDecay\(0\.1\)"),
}


@pytest.mark.parametrize("hooks", HOOKS)
@pytest.mark.parametrize("wc", [0.0, -1.0])
def test_it_is_said_once_a_set_up(arrays, globalState, hooks, wc):
    make, name = HOOKS[hooks]
    net, optimizer = made(arrays, globalState, make(), wc)
    for again in (False, True):
        if again:
            optimizer.setupOn(net, globalState)
        message = rf"^{name} has no effect: the wc of every variable.* is 0; set variable\.wc = 1\.0 where it should act$"
        with pytest.warns(SetupWarning, match=message) as found:
            optimizer.update()
        assert len(found) == 1
        assert found[0].filename == __file__
        for rate in (1.0, 0.5, 0.5):  # a new plan, then the same
            net.getVar("a.b").learnRate = rate
            optimizer.update()
        optimizer.hooks[:] = make()
        optimizer.update()


def test_each_kind_is_named(arrays, globalState):
    _, optimizer = made(arrays, globalState, [WeightDecay(0.1), GradientClipping(1.0), Lasso(0.2)])
    with pytest.warns(SetupWarning) as found:
        optimizer.update()
    assert sorted(str(each.message).partition("(")[0] for each in found) == ["Lasso", "WeightDecay"]


def test_a_rate_that_is_0_at_first(arrays, globalState):
    _, optimizer = made(arrays, globalState, [decay := WeightDecay(0.0)])
    optimizer.update()
    optimizer.update()
    decay.rate = 0.1
    with pytest.warns(SetupWarning, match="has no effect"):
        optimizer.update()


def test_a_factor_of_0_counts(arrays):
    _, optimizer = made(arrays, True, [WeightDecay(0.1)], wc=1.0)
    optimizer.globalVar[np.dtype(np.float32)].wc = 0.0
    with pytest.warns(SetupWarning, match="has no effect"):
        optimizer.update()


def none(net, optimizer):
    pass


def one_has_it(net, optimizer):
    net.getVar("z").wc = 0.5


def a_hook_gives_it(net, optimizer):
    optimizer.hooks.append(lambda var, state, stream: setattr(var, "wc", 1.0))


def nothing_is_trained(net, optimizer):
    for var in net.vars.values():
        var.learnRate = 0.0


def it_is_a_frozen_one(net, optimizer):
    net.getVar("z").wc, net.getVar("z").learnRate = 1.0, 0.0  # temporarily


class Everywhere(WeightDecay):
    def __call__(self, var, state, stream=None):
        assert self.rate == 0.1  # does not decay by wc


@pytest.mark.parametrize(
    ("hook", "change"),
    [
        (lambda: WeightDecay(0.0), none),
        (lambda: GradientClipping(1.0), none),
        (lambda: Everywhere(0.1), none),
        (lambda: WeightDecay(0.1), one_has_it),
        (lambda: WeightDecay(0.1), a_hook_gives_it),
        (lambda: WeightDecay(0.1), nothing_is_trained),
        (lambda: WeightDecay(0.1, decoupled=True), it_is_a_frozen_one),
    ],
)
def test_no_false_alarm(arrays, globalState, hook, change):
    net, optimizer = made(arrays, globalState, [hook()])
    change(net, optimizer)
    for _ in range(2):
        optimizer.update()


@pytest.mark.parametrize("kind", [WeightDecay, Lasso, Mine])
def test_decay_before_the_loss_scale_is_divided_by_it(arrays, globalState, kind):
    _, optimizer = made(arrays, globalState, [kind(0.1), GradientClipping(1.0), LossScaling()], wc=1.0)
    message = (
        rf"^{kind.__name__}\(0\.1\) runs before LossScaling, which divides the decay by the scale: add LossScaling first$"
    )
    with pytest.warns(SetupWarning, match=message) as found:
        optimizer.update()
    assert len(found) == 1
    optimizer.update()


@pytest.mark.parametrize(
    "hooks",
    [
        lambda: [LossScaling(), WeightDecay(0.1)],
        lambda: [WeightDecay(0.1, decoupled=True), LossScaling()],
        lambda: [WeightDecay(0.1), NonFiniteGuard()],
        lambda: [GradientClipping(1.0), LossScaling()],
    ],
)
def test_an_order_that_is_right(arrays, globalState, hooks):
    _, optimizer = made(arrays, globalState, hooks(), wc=1.0)
    optimizer.update()


def test_nothing_is_looked_at_while_the_plan_is_the_same(arrays, globalState, monkeypatch):
    from puzzlelib_rmsprop import plan

    seen = []
    monkeypatch.setattr(plan, "_idle", lambda *args, own=plan._idle: [seen.append(args), own(*args)][1])
    _, optimizer = made(arrays, globalState, [WeightDecay(0.1)], wc=1.0)
    for _ in range(5):
        optimizer.update()
    assert len(seen) == 1
