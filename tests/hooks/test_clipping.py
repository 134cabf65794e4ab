"""GradientClipping: the gradients in the norm, and the scaling if the norm is too large."""

import math

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, NonFiniteGuard, RMSPropGraves, WeightDecay
from tests.hooks.training import HYPER, SHAPES, assert_same, contents, make_net, set_grads, train
from tests.reference import Reference


def test_norm_is_over_all_variables_and_dtypes(arrays, globalState):
    dtypes = {"a.W": "float32", "a.b": "float16", "z": "float64"}
    hook = GradientClipping(0.75)
    net, _ = train(arrays, [hook], globalState, dtypes, steps=1)
    grads = make_net(arrays, dtypes)
    set_grads(arrays, grads, 0)
    exact = [arrays.get(grads.getVar(name).grad).astype(np.float64) for name in SHAPES]
    norm = math.sqrt(sum(float((g * g).sum()) for g in exact))
    assert hook.norm == pytest.approx(norm, rel=1e-12)
    for name, grad in zip(SHAPES, exact, strict=True):
        expected = Reference(arrays.get(grads.getVar(name).data), stored=dtypes[name])
        expected.step(grad * min(1.0, 0.75 / norm), **HYPER)
        tolerance = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3}[dtypes[name]]
        assert np.allclose(arrays.get(net.getVar(name).data).astype(np.float64), expected.param, rtol=0, atol=tolerance)


def test_a_norm_below_the_threshold_changes_nothing(arrays, globalState):
    net, optimizer = train(arrays, [GradientClipping(1e6)], globalState)
    other, plain = train(arrays, [], globalState)
    assert_same(contents(arrays, net, optimizer), contents(arrays, other, plain))


def test_frozen_variables_count_neither_for_the_norm_nor_for_the_guard(arrays, globalState):
    net, clip, guard = make_net(arrays), GradientClipping(1.0), NonFiniteGuard()
    optimizer = RMSPropGraves(**HYPER)
    optimizer.addHook(guard)
    optimizer.addHook(clip)
    optimizer.setupOn(net, globalState)
    net.getVar("a.W").learnRate = 0.0
    set_grads(arrays, net, 0)
    arrays.put(net.getVar("a.W").grad, np.full(SHAPES["a.W"], np.nan, np.float32))
    optimizer.update()
    rest = [arrays.get(net.getVar(name).grad) for name in ("a.b", "z")]
    assert guard.skipped == 0
    assert clip.norm == pytest.approx(math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in rest)), rel=1e-12)


def test_clipping_large_gradients_of_float64(arrays, globalState):
    # the sum of squares overflows but the norm does not: the step must use the clipped gradient
    ends = []
    for scale, hooks in ((1e155, [GradientClipping(1.0)]), (1e-3, [])):
        net = make_net(arrays, "float64")
        optimizer = RMSPropGraves(**HYPER)
        for hook in hooks:
            optimizer.addHook(hook)
        optimizer.setupOn(net, globalState)
        set_grads(arrays, net, 0)
        grads = {name: arrays.get(var.grad) for name, var in net.vars.items()}
        norm = np.sqrt(sum(np.sum(np.square(grad)) for grad in grads.values()))
        for name, var in net.vars.items():
            arrays.put(var.grad, grads[name] * (scale if hooks else 1 / norm))
        optimizer.update()
        ends.append({name: arrays.get(var.data) for name, var in net.vars.items()})
    for name in ends[0]:
        assert np.allclose(ends[0][name], ends[1][name], rtol=1e-12, atol=1e-14), name
    assert not np.array_equal(ends[0]["a.W"], arrays.get(make_net(arrays, "float64").getVar("a.W").data))


def test_the_norm_is_the_same_in_both_modes(arrays):
    norms = set()
    for globalState in (False, True):
        for reverse in (False, True):
            net, clip = make_net(arrays), GradientClipping(1.0)
            set_grads(arrays, net, 3)
            if reverse:
                net.vars = dict(reversed(net.vars.items()))
            net.getVar("z").learnRate = 2.0
            optimizer = RMSPropGraves()
            optimizer.addHook(clip)
            optimizer.setupOn(net, globalState)
            optimizer.update()
            norms.add(clip.norm)
    assert len(norms) == 1


@pytest.mark.parametrize("stateDtype", [None, "bfloat16"])
def test_a_norm_follows_the_decays(arrays, globalState, stateDtype):
    # bfloat16 state has its own segments in global mode: they stay the same objects when a rate changes
    net, clipping = make_net(arrays), GradientClipping(1.0)
    optimizer = RMSPropGraves(**HYPER, stateDtype=stateDtype)
    optimizer.addHook(WeightDecay(0.5))
    optimizer.addHook(clipping)
    optimizer.setupOn(net, globalState)
    for wc in (0.0, 4.0, 2.0):
        net.getVar("a.W").wc = wc
        set_grads(arrays, net, 0)
        decays = {name: 0.5 * max(var.wc, 0.0) for name, var in net.vars.items()}
        left = [arrays.get(var.grad) - decays[name] * arrays.get(var.data) for name, var in net.vars.items()]
        optimizer.update()
        assert np.isclose(clipping.norm, np.sqrt(sum((each.astype(np.float64) ** 2).sum() for each in left)), rtol=1e-5)


def test_clipping_alone_clips_one_variable(arrays):
    var = arrays.var(np.zeros(2, np.float32))
    arrays.put(var.grad, np.array([3, 4], np.float32))
    GradientClipping(1.0)(var, {})
    assert np.allclose(arrays.get(var.grad), [0.6, 0.8])


def test_statistics_of_hooks_that_are_gone_are_dropped(arrays, globalState):
    net, optimizer = make_net(arrays), RMSPropGraves(**HYPER)
    optimizer.setupOn(net, globalState)
    for i in range(5):
        optimizer.hooks[:] = [GradientClipping(1.0 + i), NonFiniteGuard()]
        set_grads(arrays, net, i)
        optimizer.update()
    assert set(optimizer._plan.statistics) == set(optimizer.hooks)
