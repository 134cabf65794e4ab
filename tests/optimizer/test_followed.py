"""Changes that hooks, users and subclasses make between or within steps are followed, or refused with the name."""

import copy
import types

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, LossScaling, NonFiniteGuard, RMSPropGraves, Variable, WeightDecay, gpuarray
from puzzlelib_rmsprop.errors import HyperParameterError, SetupError, VariableError
from tests.reference import Reference
from tests.standins import Net

F = np.float32


def variable(data, grad=0.0, dtype=F, **rates):
    var = Variable(np.full(4, data, dtype), grad=np.full(4, grad, dtype))
    for name, rate in rates.items():
        setattr(var, name, rate)
    return var


def ready(var, globalState=False, hooks=(), **options):
    optimizer = RMSPropGraves(**options)
    for hook in hooks:
        optimizer.addHook(hook)
    optimizer.setupOn({"w": var}, globalState)
    return optimizer


def mg(optimizer):
    (state,) = optimizer.states.values()
    return np.array(state["mg"])


# -------------------------------------------------------------------------------------------------- hooks


def test_decay_between_hooks_acts_on_what_they_leave():
    def replace(var, state, stream=None):
        var.grad = var.grad.copy()
        var.wc = 1.0

    for hooks in ([replace, WeightDecay(0.5)], [replace, WeightDecay(0.5), lambda var, state, stream: None]):
        optimizer = ready(variable(10.0), hooks=hooks, alpha=0.0)
        optimizer.update()
        assert mg(optimizer).tolist() == [-5.0] * 4


def test_one_hook_with_statistics_stands_once_among_the_hooks(globalState):
    clip = GradientClipping(1.0)
    optimizer = ready(variable(0.0, 100.0), globalState, [clip])
    optimizer.hooks.append(clip)
    with pytest.raises(SetupError, match="a GradientClipping holds the statistics of one position among the hooks"):
        optimizer.update()
    optimizer.hooks[:] = [clip, GradientClipping(1.0)]
    optimizer.update()
    assert np.linalg.norm(mg(optimizer)) == pytest.approx(0.05, rel=1e-6)


def test_a_hook_that_replaces_a_state_is_followed_or_refused(globalState):
    def replace(var, state, stream=None):
        state["mg"] = np.full(4, 7.0, F)

    optimizer = ready(variable(0.0), globalState, [replace])
    if globalState:
        with pytest.raises(VariableError, match=r"'w': a hook replaced its 'mg'.*state\['mg'\]\[...\] = values"):
            optimizer.update()
    else:
        optimizer.update()
        assert mg(optimizer).tolist() == [F(0.95) * 7] * 4


def test_what_hooks_keep_stays_when_a_state_is_replaced(globalState):
    seen = []

    def count(var, state, stream=None):
        state["count"] = state.get("count", 0) + 1
        seen.append(state["count"])

    optimizer = ready(variable(0.0), globalState, [count])
    for _ in range(2):
        optimizer.update()
    (state,) = optimizer.states.values()
    state["mg"] = state["mg"].copy()
    for _ in range(2):
        optimizer.update()
    assert seen == [1, 2, 3, 4]


def test_statistics_of_a_net_that_has_only_updaters(tmp_path):
    var = Variable(np.zeros(3, F), updater=lambda var, learnRate: var.data.fill(learnRate))
    optimizer = ready(var, hooks=[GradientClipping(1.0), LossScaling(8.0)])
    optimizer.update()
    assert var.data.tolist() == [F(1e-4)] * 3
    optimizer.save(str(tmp_path / "a.hdf"))
    other = ready(var, hooks=[GradientClipping(1.0), LossScaling(4.0)], learnRate=0.5)
    other.load(str(tmp_path / "a.hdf"))
    assert (other.hooks[1].scale, other.learnRate) == (8.0, 1e-4)


# -------------------------------------------------------------------------------------------------- rates


def test_products_of_rates_that_overflow_are_refused(globalState):
    var = variable(0.0, learnRate=3e38)
    optimizer = ready(var, globalState, learnRate=100.0)
    with pytest.raises(HyperParameterError, match="learnRate 100 times its own, 3e.38, overflows float32"):
        optimizer.update()
    assert not var.data.any()
    optimizer.learnRate = 1e-4
    optimizer.update()
    optimizer.learnRate = 100.0
    with pytest.raises(HyperParameterError, match="overflows float32"):
        optimizer.update()
    assert optimizer.t == 1


def test_a_decay_that_overflows_is_refused(globalState):
    optimizer = ready(variable(1.0, wc=3e38), globalState, [WeightDecay(100.0)])
    with pytest.raises(HyperParameterError, match="a rate of 100 times the largest wc, 3e.38, overflows float32"):
        optimizer.update()


def test_factors_that_overflow_or_are_frozen():
    var = variable(0.0, 1.0, learnRate=1e38)
    optimizer = ready(var, True)
    optimizer.globalVar[F].learnRate = 1e10
    with pytest.raises(HyperParameterError, match=r"'w' \(times globalVar's rates\): its learnRate must be a finite number"):
        optimizer.update()
    var.learnRate = optimizer.globalVar[F].learnRate = -1.0  # the product of two negative rates still freezes
    optimizer.update()
    assert not var.data.any()


@pytest.mark.parametrize("rate", [np.int8(100), np.float16(2), np.float16(0.1), True, 3])
def test_rates_of_every_kind_of_number_are_multiplied_in_float64(rate):
    var = variable(0.0, 1.0, learnRate=rate)
    optimizer = ready(var, True)
    optimizer.globalVar[F].learnRate = 2
    expected = Reference(np.zeros(4), dtype=F)
    expected.step(np.ones(4), learnRate=1e-4 * (float(rate) * 2.0))
    with np.errstate(all="raise"):
        optimizer.update()
    assert np.array_equal(var.data, expected.param)


def test_a_rate_that_is_gone_is_named(globalState):
    var = variable(0.0)
    optimizer = ready(var, globalState)
    optimizer.update()
    del var.learnRate
    with pytest.raises(VariableError, match="variable 'w': one of its rates was deleted: .*learnRate"):
        optimizer.update()


def test_a_schedule_by_a_property_is_followed():
    class Scheduled(RMSPropGraves):
        @property
        def learnRate(self):
            return 1e-3 if self.t <= 2 else 1.0

        @learnRate.setter
        def learnRate(self, value):
            pass

    var = variable(0.0, 1.0)
    optimizer = Scheduled()
    optimizer.setupOn({"w": var})
    expected = Reference(np.zeros(4), dtype=F)
    for t in range(1, 5):
        optimizer.update()
        expected.step(np.ones(4), learnRate=1e-3 if t <= 2 else 1.0)
    assert np.array_equal(var.data, expected.param)


def test_a_globalVar_that_is_replaced_is_followed_or_refused():
    var = variable(0.0, 1.0)
    optimizer = ready(var, True)
    flat = optimizer.globalVar[F]
    optimizer.globalVar[F] = frozen = Variable(flat.data, grad=flat.grad)
    frozen.learnRate = 0
    optimizer.update()
    assert not var.data.any()
    frozen.grad = np.full(4, 5, F)
    with pytest.raises(VariableError, match=r"globalVar\[float32\]: its gradient, of which .* was replaced after setupOn"):
        optimizer.update()


# ------------------------------------------------------------------------------------- subclasses, instances


def test_gradients_that_an_override_left_are_zeroed(globalState):
    class Own(RMSPropGraves):
        def own(self):
            for state in self.states.values():
                self.updateVar(self.globalVar[F] if self.globalState else self.module.getVar("w"), state)

        def updateLocalStates(self, useStreams, sync):
            self.own()

        def updateGlobalState(self):
            self.own()

    var = variable(0.0, 1.0)
    optimizer = Own(fuseZeroGrad=True)
    optimizer.setupOn({"w": var}, globalState)
    optimizer.update()
    assert var.data.all()
    assert var.grad.all()
    optimizer.zeroGradParams()
    assert not var.grad.any()


def test_methods_of_an_instance_count(globalState, monkeypatch):
    calls = []
    var = variable(0.0, 1.0)
    optimizer = ready(var, globalState)
    optimizer.update()
    optimizer.updateVar = types.MethodType(lambda self, var, state, stream=None: calls.append(var), optimizer)
    optimizer.update()
    assert len(calls) == 1
    del optimizer.updateVar
    monkeypatch.setattr(RMSPropGraves, "updateVar", lambda self, var, state, stream=None: calls.append(var))
    optimizer.update()
    assert len(calls) == 2


def test_a_step_of_an_instance_sees_what_it_replaced():
    var = variable(0.0, 1.0)
    optimizer = ready(var, alpha=0.5)
    optimizer.update()

    def step(self, useStreams, sync):
        self.module.getVar("w").grad = np.full(4, 100, F)
        RMSPropGraves.updateLocalStates(self, useStreams, sync)

    optimizer.updateLocalStates = types.MethodType(step, optimizer)
    optimizer.update()
    assert mg(optimizer).tolist() == [50.25] * 4


def test_a_shallow_copy_has_its_own_view_of_the_net():
    var = variable(0.0, 1.0)
    optimizer = ready(var)
    optimizer.update()
    twin = copy.copy(optimizer)
    twin.addHook(NonFiniteGuard())
    assert optimizer.hooks == []
    old, var.data = var.data, np.zeros(4, F)
    twin.update()
    before = old.copy()
    optimizer.update()
    assert np.array_equal(old, before)
    assert var.data.all()


def test_an_ensureHdf_of_ones_own_is_used(tmp_path, globalState):
    class Own(RMSPropGraves):
        @staticmethod
        def ensureHdf(file, mode):
            return str(tmp_path / f"{file}.hdf")

    optimizer = Own(0.5)
    optimizer.setupOn({"w": variable(0.0, 1.0)}, globalState)
    optimizer.update()
    optimizer.save("here")
    assert (tmp_path / "here.hdf").exists()
    other = Own()
    other.setupOn({"w": variable(0.0)}, globalState)
    other.load("here")
    assert (other.learnRate, other.t) == (0.5, 1)
    assert np.array_equal(mg(other), mg(optimizer))


def test_an_interrupt_before_the_kernel_does_not_count(monkeypatch, globalState):
    def interrupted(*args):
        raise KeyboardInterrupt

    optimizer = ready(variable(0.0, 1.0), globalState)
    monkeypatch.setattr(RMSPropGraves, "_pack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.update()
    assert optimizer.t == 0


# ------------------------------------------------------------------------------------------------ unusual nets


def test_arrays_of_rates_on_variables_that_share_arrays_are_refused(globalState):
    first = variable(0.0)
    second = Variable(first.data, grad=first.grad)
    second.learnRate = np.ones(3)
    with pytest.raises(VariableError, match="'a' and 'b' share their arrays but have learnRate"):
        RMSPropGraves().setupOn(Net({"a": first, "b": second}), globalState)


def test_a_variable_that_is_twice_in_a_list_is_one(globalState):
    var = Variable(gpuarray.zeros(3), name="w")
    optimizer = RMSPropGraves()
    optimizer.setupOn([var, var], globalState)
    optimizer.update()
    assert len(optimizer.states) == 1


def test_puzzlelibs_wrapper_around_another_array_is_seen(globalState):
    from tests.standins import CPUArray, PuzzleVariable

    var = PuzzleVariable(CPUArray.toDevice(np.zeros(4, F)))
    var.grad.data[...] = 1
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net({"w": var}), globalState)
    optimizer.update()
    var.data.data = np.zeros(4, F)
    if globalState:
        with pytest.raises(VariableError, match="'w': its data was replaced after setupOn"):
            optimizer.update()
    else:
        optimizer.update()
        assert var.data.data.all()
