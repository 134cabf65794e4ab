"""Warnings if every step is skipped: from a guard after 100 steps, from a loss scale at its minimum."""

import gc
import weakref

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, LossScaling, NonFiniteGuard, RMSPropGraves
from puzzlelib_rmsprop.errors import NonFiniteWarning
from tests.conftest import ARRAYS
from tests.hooks.training import HYPER, make_net


@pytest.fixture
def steps(arrays, globalState):
    """``steps(hook, what)`` takes one step for each letter, with a NaN gradient for ``x``, and returns the optimizer."""
    made = {}

    def take(hook, what, wanted=RMSPropGraves):
        if hook not in made:
            net, optimizer = make_net(arrays), wanted(**HYPER)
            optimizer.addHook(hook)
            optimizer.setupOn(net, globalState)
            made[hook] = net, optimizer
        net, optimizer = made[hook]
        for letter in what:
            arrays.put(net.getVar("z").grad, np.full((1,), np.nan if letter == "x" else 0.1, np.float32))
            optimizer.update()
        return optimizer

    return take


def said(arrays, steps, hook, last, read, message):
    """Expects one warning: in the ``last`` step on the CPU, at the next read on a GPU."""
    if "cuda" in arrays.name:
        steps(hook, last)
        with pytest.warns(NonFiniteWarning, match=message) as found:
            read(hook)
    else:
        with pytest.warns(NonFiniteWarning, match=message) as found:
            steps(hook, last)
        assert found[0].filename == __file__
    assert len(found) == 1
    read(hook)


READS = {
    "skipped": lambda hook: hook.skipped,
    "a checkpoint": lambda hook: hook.getState(),
    "the scale": lambda hook: getattr(hook, "scale", None) or hook.skipped,
}


@pytest.mark.parametrize("read", READS)
def test_a_guard_that_skips_every_step(arrays, steps, read):
    guard = NonFiniteGuard()
    steps(guard, "x.x" + "x" * 98)
    READS[read](guard)
    message = (
        r"NonFiniteGuard has skipped 100 steps in a row, 101 in total: nothing is trained; look for infinities and NaNs"
    )
    said(arrays, steps, guard, "x", READS[read], message)
    steps(guard, "x" * 150)
    READS[read](guard)
    assert guard.skipped == 251
    # a new run of skipped steps
    steps(guard, ".")
    READS[read](guard)
    steps(guard, "x" * 99)
    said(arrays, steps, guard, "x", READS[read], r"100 steps in a row, 351 in total")


@pytest.mark.parametrize("read", READS)
def test_a_loss_scale_at_its_floor(arrays, steps, read):
    scaling = LossScaling(2.0**-22, backoff=0.5)
    steps(scaling, "xx")  # down to the minimum: the next step may be good
    assert scaling.scale == 2.0**-24
    steps(scaling, ".")
    message = (
        r"LossScaling has skipped 1 step in a row, 3 in total: its scale has reached the minimum, 5\.96e-08, so the "
        r"scale is not the cause; look for infinities and NaNs in the data, the loss and the parameters"
    )
    said(arrays, steps, scaling, "x", READS[read], message)
    steps(scaling, "x" * 200)
    READS[read](scaling)
    assert scaling.getState() == {"scale": 2.0**-24, "good": 0, "skipped": 203}


def test_a_loss_scale_on_its_way_down_says_nothing(arrays, steps):
    scaling = LossScaling(2.0**16)
    steps(scaling, "x" * 40)
    assert (scaling.scale, scaling.skipped) == (2.0**-24, 40)
    said(arrays, steps, scaling, "x", READS["the scale"], "skipped 41 steps in a row, 41 in total: its scale has reached")


def test_a_loss_scale_that_comes_down_slowly_is_a_guard_too(arrays, steps):
    scaling = LossScaling(2.0**16, backoff=1.0)
    steps(scaling, "x" * 99)
    said(
        arrays, steps, scaling, "x", READS["skipped"], "LossScaling has skipped 100 steps in a row, 100 in total: nothing is"
    )


def test_a_rule_of_ones_own(arrays, steps):
    class Own(RMSPropGraves):
        def updateVar(self, var, state, stream=None):
            super().updateVar(var, state, stream)

    guard = NonFiniteGuard()
    optimizer = steps(guard, "x" * 99, Own)
    with pytest.warns(NonFiniteWarning, match="100 steps in a row"):  # the step reads the record, on a GPU too
        steps(guard, "x")
    assert optimizer.t == 100  # skipped steps count, so a schedule based on t goes on


def test_the_scale_comes_back_and_the_schedule_goes_on(arrays, steps):
    # a learning rate based on t also changes in skipped steps, and the next step uses the current one
    scaling = LossScaling(4.0, growth=2.0, interval=2)
    optimizer = steps(scaling, "xx..")
    assert (optimizer.t, scaling.scale, scaling.skipped) == (4, 2.0, 2)
    taken = optimizer.t - scaling.skipped  # for a schedule that counts only the steps taken
    steps(scaling, "x")
    assert optimizer.t - scaling.skipped == taken
    steps(scaling, ".")
    assert optimizer.t - scaling.skipped == taken + 1


def test_hooks_that_are_replaced_leave_nothing_behind(arrays, globalState):
    net, optimizer = make_net(arrays), RMSPropGraves(**HYPER)
    optimizer.setupOn(net, globalState)
    seen = []
    for i in range(1000):
        optimizer.hooks[:] = [GradientClipping(1.0 + i), NonFiniteGuard()]
        seen += map(weakref.ref, optimizer.hooks)
        if i % 2:
            net.getVar("z").learnRate = 1.0 / i  # also makes a new plan
        optimizer.update()
    gc.collect()
    assert sum(each() is not None for each in seen) == 2
    assert set(optimizer._plan.statistics) == set(optimizer.hooks)


def test_an_optimizer_that_its_hook_holds_is_let_go(globalState):
    def once():
        net, optimizer = make_net(ARRAYS["own"]), RMSPropGraves(**HYPER)

        def hook(var, state, stream):
            assert optimizer.module is net

        optimizer.addHook(hook)
        optimizer.addHook(GradientClipping(1.0))
        optimizer.setupOn(net, globalState)
        optimizer.update()
        return weakref.ref(optimizer), weakref.ref(net), weakref.ref(hook)

    seen = [reference for _ in range(20) for reference in once()]
    gc.collect()
    assert not [reference for reference in seen if reference() is not None]


def test_setting_up_again_adds_no_hooks(arrays, globalState):
    net, optimizer, calls = make_net(arrays), RMSPropGraves(**HYPER), []
    clip = GradientClipping(1.0)
    optimizer.addHook(clip)
    optimizer.addHook(lambda var, state, stream: calls.append(var))
    for _ in range(50):
        optimizer.setupOn(net, globalState)
    record = clip._record
    optimizer.update()
    assert len(calls) == len(net.vars)
    assert clip._record is record
    assert list(optimizer._plan.statistics) == [clip]


def test_a_hook_that_was_taken_off_and_comes_back_counts_on(arrays, globalState):
    net, optimizer, guard = make_net(arrays), RMSPropGraves(**HYPER), NonFiniteGuard()
    optimizer.setupOn(net, globalState)
    for hooks in ([guard], [], [GradientClipping(1.0)], [guard]):
        optimizer.hooks[:] = hooks
        arrays.put(net.getVar("z").grad, np.full((1,), np.nan if guard in hooks else 0.0, np.float32))
        optimizer.update()
    assert guard.skipped == 2
