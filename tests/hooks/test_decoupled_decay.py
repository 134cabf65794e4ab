"""WeightDecay(decoupled=True): decays the parameter before the step, with any hooks, optimizer and arrays."""

import numpy as np
import pytest

from puzzlelib_rmsprop import (
    GradientClipping,
    GradientScaling,
    Lasso,
    LossScaling,
    NonFiniteGuard,
    Optimizer,
    RMSPropGraves,
    WeightDecay,
)
from puzzlelib_rmsprop.arrays import family_of
from puzzlelib_rmsprop.errors import HyperParameterError, SetupError, SetupWarning
from tests.hooks.training import HYPER, WC, assert_same, contents, make_net, set_grads, train
from tests.optimizer.options import states_of, takes_bfloat16
from tests.reference_extended import Extended
from tests.standins import Net


def foreign(var, state, stream=None):
    pass


class NotFused(RMSPropGraves):
    """The library's rule, variable by variable."""

    def updateVar(self, var, state, stream=None):
        super().updateVar(var, state, stream)


class SGD(Optimizer):
    """A user's own rule."""

    def __init__(self, learnRate):
        super().__init__()
        self.setAttr("learnRate", learnRate)

    def updateVar(self, var, state, stream=None):
        family = family_of(var.data)
        rate = np.float32(self.learnRate * var.learnRate)
        family.set(var.data, family.get(var.data) + rate * family.get(var.grad))


@pytest.mark.parametrize("gradOfLoss", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_it_is_its_formula(arrays, globalState, dtype, gradOfLoss):
    # Loshchilov and Hutter: w - rate*learnRate*w, and the optimizer's step; in float64
    net, decay = make_net(arrays, dtype), WeightDecay(3.0, decoupled=True)
    net.getVar("a.W").learnRate = 0.5
    optimizer = RMSPropGraves(**HYPER, gradOfLoss=gradOfLoss)
    optimizer.addHook(decay)
    optimizer.setupOn(net, globalState)
    mine = {
        name: [np.float64(arrays.get(var.data)), *(np.zeros(arrays.get(var.data).shape) for _ in range(3))]
        for name, var in net.vars.items()
    }
    for step in range(6):
        set_grads(arrays, net, step, -1.0 if gradOfLoss else 1.0)
        decay.rate = 3.0 + step
        optimizer.learnRate = 1e-2 / (1 + step)  # a schedule changes the decay as well
        optimizer.update()
        for name, (w, m, n, d) in mine.items():
            g = (-1 if gradOfLoss else 1) * np.float64(arrays.get(net.getVar(name).grad))
            rate = 1e-2 / (1 + step) * (0.5 if name == "a.W" else 1.0)
            w = w - rate * (3.0 + step) * WC[name] * w
            m, n = 0.9 * m + 0.1 * g, 0.9 * n + 0.1 * g * g
            d = 0.8 * d + rate * g / np.sqrt(n - m * m + 1e-4)
            mine[name] = [w + d, m, n, d]
    tolerance = {"float16": 4e-3, "float32": 2e-6, "float64": 1e-13}[dtype]
    for name, (w, *_) in mine.items():
        assert np.allclose(np.float64(arrays.get(net.getVar(name).data)), w, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize(
    "options", [{}, {"masterWeights": True}, {"stateDtype": "bfloat16"}], ids=["plain", "master", "bfloat16"]
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_to_the_bit(arrays, globalState, dtype, options):
    if "stateDtype" in options and not takes_bfloat16(arrays):
        pytest.skip(f"{arrays.name} has no bfloat16")
    decays = [WeightDecay(2.0, decoupled=True), WeightDecay(0.1), WeightDecay(0.5, decoupled=True)]
    net, optimizer = train(arrays, decays, globalState, dtype, steps=4, **options)
    if "stateDtype" in options and dtype != "float64":
        # stochastic rounding of the state does not affect the decay: compare with a rate of 0
        other, _ = train(arrays, [WeightDecay(0.1)], globalState, dtype, steps=4, **options)
        for name, wc in WC.items():
            same = arrays.get(net.getVar(name).data).tobytes() == arrays.get(other.getVar(name).data).tobytes()
            assert same == (wc == 0), name
        return
    start, grads = make_net(arrays, dtype), make_net(arrays, dtype)
    for name, var in start.vars.items():
        state, master = "float64" if dtype == "float64" else "float32", "masterWeights" in options and dtype == "float16"
        expected = Extended(arrays.get(var.data).ravel(), dtype, state, master, wc=WC[name])
        for step in range(4):
            set_grads(arrays, grads, step)
            grad = arrays.get(grads.getVar(name).grad).ravel()
            expected.step(grad, **HYPER, ops=[(2, -0.1, 0, None)], decay=2.5)
        assert np.array_equal(arrays.get(net.getVar(name).data).ravel(), expected.param.astype(dtype)), name
        if master:
            found = states_of(arrays, optimizer)[name]["master"].ravel()
            assert np.array_equal(found, expected.master), name


PLACES = {
    "last": lambda: [GradientClipping(0.5), WeightDecay(0.1), WeightDecay(2.0, decoupled=True)],
    "first": lambda: [WeightDecay(2.0, decoupled=True), GradientClipping(0.5), WeightDecay(0.1)],
    "in two": lambda: [
        WeightDecay(1.5, decoupled=True),
        GradientClipping(0.5),
        WeightDecay(0.1),
        WeightDecay(0.5, decoupled=True),
    ],
    "one object twice": lambda: [d := WeightDecay(1.0, decoupled=True), GradientClipping(0.5), d, WeightDecay(0.1)],
    "before a foreign hook": lambda: [WeightDecay(2.0, decoupled=True), GradientClipping(0.5), WeightDecay(0.1), foreign],
    "behind a foreign hook": lambda: [GradientClipping(0.5), foreign, WeightDecay(0.1), WeightDecay(2.0, decoupled=True)],
    "among more than fit": lambda: [
        *(GradientScaling(1.0) for _ in range(9)),
        WeightDecay(2.0, decoupled=True),
        GradientClipping(0.5),
        WeightDecay(0.1),
    ],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wherever_it_stands(arrays, globalState, place, dtype):
    net, optimizer = train(arrays, PLACES[place](), globalState, dtype)
    other, usual = train(arrays, PLACES["last"](), globalState, dtype)
    assert_same(contents(arrays, net, optimizer), contents(arrays, other, usual))


def test_gradients_and_averages_are_left_alone(arrays, globalState):
    net, optimizer = train(arrays, [WeightDecay(2.0, decoupled=True)], globalState)
    other, plain = train(arrays, [], globalState)
    found, expected = contents(arrays, net, optimizer), contents(arrays, other, plain)
    for key in found:
        if key in ("a.W", "z"):
            assert (found[key] != expected[key]).any(), key
        else:
            assert found[key].tobytes() == expected[key].tobytes(), key
    for name, var in net.vars.items():
        assert np.array_equal(arrays.get(var.grad), arrays.get(other.getVar(name).grad))


def test_a_rate_of_0_changes_no_bit(arrays, globalState):
    net, optimizer = train(arrays, [WeightDecay(0.0, decoupled=True)], globalState)
    other, plain = train(arrays, [], globalState)
    assert_same(contents(arrays, net, optimizer), contents(arrays, other, plain))


def test_frozen_variables_and_factors(arrays, globalState):
    net = make_net(arrays)
    optimizer = RMSPropGraves(**HYPER)
    optimizer.addHook(WeightDecay(4.0, decoupled=True))
    optimizer.setupOn(net, globalState)
    net.getVar("a.W").learnRate = 0.0
    factor = 1.0
    if globalState:
        optimizer.globalVar[np.dtype(np.float32)].wc = factor = 2.0
    before = {name: arrays.get(var.data) for name, var in net.vars.items()}
    optimizer.update()  # gradients of 0
    after = {name: arrays.get(var.data) for name, var in net.vars.items()}
    for name in ("a.W", "a.b"):
        assert np.array_equal(after[name], before[name]), name
    assert np.array_equal(after["z"], before["z"] - np.float32(1e-2 * 4.0 * 0.5 * factor) * before["z"])


@pytest.mark.parametrize("hook", [NonFiniteGuard, LossScaling])
@pytest.mark.parametrize(
    "make", [RMSPropGraves, NotFused, lambda learnRate, **_: SGD(learnRate)], ids=["fused", "not", "own"]
)
def test_a_skipped_step_decays_nothing(arrays, globalState, hook, make):
    net, optimizer = make_net(arrays), make(**HYPER)
    optimizer.addHook(hook())
    optimizer.addHook(WeightDecay(4.0, decoupled=True))
    optimizer.setupOn(net, globalState)
    for bad in (True, False):
        arrays.put(net.getVar("z").grad, np.full((1,), np.nan if bad else 0.0, np.float32))
        before = contents(arrays, net, optimizer)
        optimizer.update()
        after = contents(arrays, net, optimizer)
        if bad:
            assert_same(after, before)
        else:
            assert np.array_equal(after["a.W"], before["a.W"] - np.float32(1e-2 * 4.0) * before["a.W"])


@pytest.mark.parametrize("options", [{}, {"masterWeights": True}], ids=["plain", "master"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_subclass_with_its_own_update_decays_alike(arrays, globalState, dtype, options):
    made = []
    for kind in (NotFused, RMSPropGraves):
        net, optimizer = make_net(arrays, dtype), kind(**HYPER, **options, gradOfLoss=True)
        optimizer.addHook(WeightDecay(3.0, decoupled=True))
        optimizer.setupOn(net, globalState)
        for step in range(5):
            set_grads(arrays, net, step)
            optimizer.update()
            if step == 2:
                arrays.put(
                    net.getVar("z").data, np.full((1,), 1.5, dtype)
                )  # the value written by the user counts, not the master weight
        made.append((net, states_of(arrays, optimizer)))
    (net, states), (fused, expected) = made
    for name, var in net.vars.items():
        found = {"data": arrays.get(var.data), **states[name]}
        wanted = {"data": arrays.get(fused.getVar(name).data), **expected[name]}
        for entity, content in found.items():
            if entity not in ("data", "master"):
                assert content.tobytes() == wanted[entity].tobytes(), (name, entity)
                continue
            # a separate decay is rounded once more per step: to 16 bits without master weights or after a write
            coarse = dtype == "float16" and (not options or name == "z" or entity == "data")
            tolerance = 2e-3 if coarse else 1e-14 if dtype == "float64" else 2e-6
            assert np.allclose(np.float64(content), np.float64(wanted[entity]), rtol=tolerance, atol=tolerance), (
                name,
                entity,
            )


def test_what_is_less_than_the_last_digit_adds_up(arrays):
    # 1e-8 per step: subtracted separately, it would be rounded away in every step
    rng = np.random.default_rng(0)
    start, moved = rng.uniform(1.0, 2.0, 20000).astype(np.float32), {}
    grads = rng.standard_normal((200, start.size)).astype(np.float32)
    for rate in (0.0, 1e-4):
        var = arrays.var(start)
        var.wc = 1.0
        optimizer = RMSPropGraves(1e-4)
        optimizer.addHook(WeightDecay(rate, decoupled=True))
        optimizer.setupOn(Net(w=var))
        for grad in grads:
            arrays.put(var.grad, grad)
            optimizer.update()
        moved[rate] = np.float64(arrays.get(var.data))
    assert np.mean(moved[1e-4] - moved[0.0]) == pytest.approx(-200 * 1e-8 * np.mean(start), rel=0.02)


@pytest.mark.parametrize("master", [False, True])
def test_small_decays_of_16_bits_add_up_in_a_master_copy(arrays, master):
    var = arrays.var(np.full(8, 1.0, np.float16))
    var.wc = 1.0
    optimizer = RMSPropGraves(1e-4, masterWeights=master)
    optimizer.addHook(WeightDecay(0.5, decoupled=True))
    optimizer.setupOn(Net(w=var))
    for _ in range(100):
        optimizer.update()
    # the smallest decrease of 1 in float16 is 4.9e-4
    assert np.allclose(np.float64(arrays.get(var.data)), (1 - 5e-5) ** 100 if master else 1.0, rtol=3e-4, atol=0)


def test_setting_up_decays_nothing(arrays, globalState):
    net, optimizer = make_net(arrays), RMSPropGraves(**HYPER)
    optimizer.addHook(WeightDecay(10.0, decoupled=True))
    before = {name: arrays.get(var.data) for name, var in net.vars.items()}
    for _ in range(3):
        optimizer.setupOn(net, globalState)
        optimizer.zeroGradParams()
    for name, var in net.vars.items():
        assert np.array_equal(arrays.get(var.data), before[name])


def test_an_optimizer_of_ones_own(arrays, globalState):
    net, optimizer = make_net(arrays), SGD(-0.25)  # the rule defines the meaning of a negative rate
    net.getVar("z").learnRate = 0.5
    optimizer.addHook(WeightDecay(0.5, decoupled=True))
    optimizer.setupOn(net, globalState)
    before = {name: arrays.get(var.data) for name, var in net.vars.items()}
    set_grads(arrays, net, 3)
    optimizer.update()
    for name, var in net.vars.items():
        own = 0.5 if name == "z" else 1.0
        decayed = before[name] - np.float32(0.25 * own * 0.5 * WC[name]) * before[name]
        expected = decayed + np.float32(-0.25 * own) * arrays.get(var.grad)
        assert np.array_equal(arrays.get(var.data), expected), name


def test_one_that_has_no_learning_rate_is_told_so(arrays):
    class Own(SGD):
        def updateVar(self, var, state, stream=None):
            pass

    net, optimizer = make_net(arrays), Own(0.0)
    optimizer.addHook(WeightDecay(0.5, decoupled=True))
    optimizer.setupOn(net)
    optimizer.update()  # a schedule may begin like this
    with pytest.warns(
        SetupWarning,
        match=r"WeightDecay\(0\.5\) has no effect: decoupled decay is proportional to the optimizer's learnRate",
    ):
        optimizer.update()
    optimizer.update()
    optimizer.learnRate = None
    with pytest.raises(HyperParameterError, match="learnRate must be a number; got None"):
        optimizer.update()


@pytest.mark.parametrize(
    "make", [RMSPropGraves, NotFused, lambda learnRate, **_: SGD(learnRate)], ids=["fused", "not", "own"]
)
def test_more_than_there_is_is_refused(arrays, globalState, make):
    net, optimizer = make_net(arrays), make(**HYPER)
    optimizer.addHook(guard := NonFiniteGuard())
    optimizer.addHook(WeightDecay(90.0, decoupled=True))
    optimizer.setupOn(net, globalState)
    net.getVar("a.b").learnRate = 3.0  # has no wc
    optimizer.update()
    optimizer.hooks.append(WeightDecay(20.0, decoupled=True))
    before, t = contents(arrays, net, optimizer), optimizer.t
    arrays.put(net.getVar("z").grad, np.full((1,), np.nan, np.float32))
    with pytest.raises(
        HyperParameterError,
        match=r"variable 'a\.W': the product of learnRate \(0\.01\), its own learnRate \(1\), the decoupled decay \(110\) "
        r"and its wc \(1\) must be at most 1, or its parameters change sign; got 1\.1",
    ):
        optimizer.update()
    assert_same(contents(arrays, net, optimizer), before)
    assert optimizer.t == t
    if type(optimizer) is RMSPropGraves:
        assert guard.skipped == 0
    optimizer.hooks[-1].rate = 10.0  # a factor of exactly 1: decays to zero
    set_grads(arrays, net, 0, 0.0)
    optimizer.update()
    delta = contents(arrays, net, optimizer)
    assert np.isfinite(delta["a.W"]).all()


class Halved(WeightDecay):
    pass


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Halved(0.1, decoupled=True), "Halved"),
        (lambda: [h := Lasso(0.1), setattr(h, "decoupled", True)][0], "Lasso"),
    ],
)
def test_only_weight_decay_itself(arrays, make, name):
    message = f"a decoupled {name} is part of the step and cannot be called as a hook: pass a WeightDecay"
    net, optimizer = make_net(arrays), RMSPropGraves(**HYPER)
    with pytest.raises(SetupError, match=message):
        optimizer.addHook(make())
    assert not optimizer.hooks
    optimizer.setupOn(net)
    optimizer.hooks += [GradientScaling(3.0), foreign, make()]
    set_grads(arrays, net, 0)
    before = {name: arrays.get(var.grad) for name, var in net.vars.items()}
    with pytest.raises(SetupError, match=message):
        optimizer.update()
    for name, var in net.vars.items():
        assert np.array_equal(arrays.get(var.grad), before[name])


def test_by_hand_it_is_refused(arrays):
    var = arrays.var(np.ones(3, np.float32))
    with pytest.raises(SetupError, match="a decoupled WeightDecay is part of the step and cannot be called as a hook"):
        WeightDecay(0.1, decoupled=True)(var, {})
    with pytest.raises(TypeError, match="decoupled"):
        Lasso(0.1, decoupled=True)
    with pytest.raises(HyperParameterError, match="decoupled must be True or False; got 'x'"):
        WeightDecay(0.1, decoupled="x")
