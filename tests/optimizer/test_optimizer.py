"""The optimizer's contract: modes, rates, hooks, tied and self-updating variables, re-binding, subclasses."""

import numpy as np
import pytest

from puzzlelib_rmsprop import Hook, NodeInfo, Optimizer, RMSPropGraves, Variable, WeightDecay, gpuarray
from puzzlelib_rmsprop.errors import Error, SetupError, VariableError
from tests.reference import Reference
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close

SHAPES = {"fc1.W": (5, 3), "fc1.b": (3,), "fc0.W": (7, 5), "fc0.b": (5,), "scalar": (), "none": (0, 4)}


class Case:
    """A net of variables, the optimizer on it, and the float64 reference of each variable."""

    def __init__(self, arrays, globalState, dtype="float32", shapes=SHAPES, seed=0, **hyper):
        self.rng = np.random.default_rng(seed)
        self.arrays, self.dtype = arrays, dtype
        params = {name: self.rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        self.net = Net({name: arrays.var(param) for name, param in params.items()})
        stored = "float16" if dtype == "float16" else None
        self.expected = {name: Reference(param, stored=stored) for name, param in params.items()}
        self.hyper = {"learnRate": 1e-2, **hyper}
        self.optimizer = RMSPropGraves(**self.hyper)
        self.optimizer.setupOn(self.net, useGlobalState=globalState)

    def var(self, name):
        return self.net.getVar(name)

    def fill_grads(self):
        grads = {}
        for name in self.expected:
            grads[name] = self.rng.standard_normal(self.expected[name].param.shape).astype(self.dtype)
            self.arrays.put(self.var(name).grad, grads[name])
        return grads

    def step(self, frozen=(), learnRate=None, momRate=None, change=None):
        """One update, and the reference's with each variable's own rates; ``change`` is what hooks do to a gradient."""
        grads = self.fill_grads()
        self.optimizer.update()
        for name, reference in self.expected.items():
            if name in frozen:
                continue
            grad = grads[name] if change is None else change(name, grads[name], reference.param)
            reference.step(
                grad,
                learnRate=self.optimizer.learnRate * (learnRate or {}).get(name, 1.0),
                momRate=self.optimizer.momRate * (momRate or {}).get(name, 1.0),
            )

    def check(self, tolerance=None):
        for slot in self.optimizer._slots:
            name = slot.names[0]
            actual = {"param": slot.var.data, **slot.state}
            for buffer, content in self.expected[name].buffers().items():
                limit = tolerance or TOLERANCE[self.dtype][buffer]
                assert_close(self.arrays.get(actual[buffer]), content, limit, f"{name}: {buffer}")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_trains_every_variable(arrays, globalState, dtype):
    case = Case(arrays, globalState, dtype)
    for _ in range(10):
        case.step()
    case.check()
    assert case.optimizer.t == 10


def test_local_and_global_agree_to_the_bit(arrays):
    cases = [Case(arrays, mode) for mode in (False, True)]
    for case in cases:
        for _ in range(5):
            case.step()
    for name in SHAPES:
        local, flat = (arrays.get(case.var(name).data) for case in cases)
        assert np.array_equal(local, flat), name


def test_defaults_are_puzzlelibs():
    optimizer = RMSPropGraves()
    assert optimizer.getAttrDict() == {"t": 0, "learnRate": 1e-4, "alpha": 0.95, "momRate": 0.9, "epsilon": 1e-4}
    assert optimizer.nodeinfo is None
    empty = (optimizer.module, optimizer.states, optimizer.hooks, optimizer.globalState, optimizer.globalVar)
    assert empty == (None, {}, [], False, {})
    assert (optimizer.customVars, optimizer.shParams, optimizer.shGrads) == ([], {}, {})


def test_sign(arrays):
    # the gradient of minus the loss is added; that of the loss itself is taken off, and ends at the same place
    grad = np.array([1.0, -2.0, 0.5], np.float32)
    ends = []
    for gradOfLoss in (False, True):
        var = arrays.var(np.zeros(3, np.float32))
        optimizer = RMSPropGraves(gradOfLoss=gradOfLoss)
        optimizer.setupOn(Net(W=var))
        for _ in range(3):
            arrays.put(var.grad, -grad if gradOfLoss else grad)
            optimizer.update()
        ends.append(arrays.get(var.data))
    assert np.array_equal(np.sign(ends[0]), np.sign(grad))
    assert np.array_equal(ends[0], ends[1])


# --------------------------------------------------------------------------------------------- states


def test_local_states(arrays):
    case = Case(arrays, False)
    assert list(case.optimizer.states) == list(SHAPES)
    for name, state in case.optimizer.states.items():
        assert list(state) == ["mg", "variance", "delta"]
        for array in state.values():
            assert type(array) is type(case.var(name).data)
            assert array.shape == SHAPES[name]


def test_global_buffers(arrays):
    shapes = {"b.W": (3, 3), "a.W": (5,), "c.W": (2,)}
    case = Case(arrays, True, shapes=shapes)
    key = np.dtype("float32")
    assert list(case.optimizer.states) == list(case.optimizer.globalVar) == [key]
    shared = case.optimizer.shParams[key]
    assert list(shared.offsets) == ["a.W", "b.W", "c.W"], "sorted by first name"
    flat = case.optimizer.globalVar[key]
    assert type(flat.data) is type(case.var("a.W").data)
    for name, shape in shapes.items():
        var = case.var(name)
        assert var.data is shared[name]
        assert getattr(case.net, name.replace(".", "_")) is var.data, "setVar points the module's attribute at the view"
        assert var.data.shape == shape
    # a view: what is written into the flat buffer shows in the variable
    arrays.put(flat.data, np.arange(flat.data.size, dtype=np.float32))
    for name, shape in shapes.items():
        start = shared.offsets[name]
        expected = np.arange(start, start + int(np.prod(shape)), dtype=np.float32).reshape(shape)
        assert np.array_equal(arrays.get(case.var(name).data), expected)


def test_global_mode_keeps_data_gradients_and_the_variables_themselves(arrays):
    rng = np.random.default_rng(0)
    param, grad = rng.standard_normal((2, 4, 3)).astype(np.float32)
    var = arrays.var(param, name="mine", postUpdater=print)
    arrays.put(var.grad, grad)
    var.learnRate, var.momRate, var.wc = 0.5, 0.25, 0.125
    net = Net({"fc.W": var, "other": arrays.var(np.ones(2, np.float32))})
    RMSPropGraves().setupOn(net, useGlobalState=True)
    assert net.getVar("fc.W") is var
    assert (var.name, var.postUpdater, var.learnRate, var.momRate, var.wc) == ("mine", print, 0.5, 0.25, 0.125)
    assert np.array_equal(arrays.get(var.data), param)
    assert np.array_equal(arrays.get(var.grad), grad)


def test_several_dtypes_in_one_net(arrays, globalState):
    shapes = {"a": (3,), "b": (4,), "c": (5,)}
    rng = np.random.default_rng(0)
    dtypes = {"a": "float32", "b": "float64", "c": "float32"}
    net = Net({name: arrays.var(rng.standard_normal(shape).astype(dtypes[name])) for name, shape in shapes.items()})
    expected = {name: Reference(arrays.get(net.getVar(name).data)) for name in shapes}
    optimizer = RMSPropGraves()
    optimizer.setupOn(net, globalState)
    if globalState:
        assert list(optimizer.globalVar) == [np.dtype("float32"), np.dtype("float64")]
    for name in shapes:
        grad = rng.standard_normal(shapes[name])
        arrays.put(net.getVar(name).grad, grad)
        expected[name].step(arrays.get(net.getVar(name).grad))
    optimizer.update()
    for name in shapes:
        assert_close(arrays.get(net.getVar(name).data), expected[name].param, TOLERANCE[dtypes[name]]["param"], name)


def test_zero_grad(arrays, globalState):
    case = Case(arrays, globalState)
    case.fill_grads()
    case.optimizer.zeroGradParams()
    for name in SHAPES:
        assert not arrays.get(case.var(name).grad).any()
        assert arrays.get(case.var(name).data).any() or SHAPES[name] == (0, 4)


def test_a_state_array_put_in_place_is_used(arrays, globalState):
    case = Case(arrays, globalState)
    case.step()
    for state in case.optimizer.states.values():
        state["delta"] = arrays.make(np.zeros(state["delta"].shape, np.float32))
    for reference in case.expected.values():
        reference.delta = np.zeros_like(reference.delta)
    case.step()
    case.check()


# ---------------------------------------------------------------------------------------------- rates


def test_frozen_and_own_rates_are_live_in_both_modes(arrays, globalState):
    case = Case(arrays, globalState)
    case.step()
    # PuzzleLib's global mode drops rates: there, none of these lines does anything
    case.var("fc0.b").learnRate = 0
    case.var("fc1.W").learnRate, case.var("fc1.W").momRate = 0.25, 0.5
    frozen = arrays.get(case.var("fc0.b").data)
    for _ in range(3):
        case.step(frozen={"fc0.b"}, learnRate={"fc1.W": 0.25}, momRate={"fc1.W": 0.5})
    assert np.array_equal(arrays.get(case.var("fc0.b").data), frozen)
    case.check()
    # thawed again, its state is where it was
    case.var("fc0.b").learnRate = 2.0
    case.step(learnRate={"fc1.W": 0.25, "fc0.b": 2.0}, momRate={"fc1.W": 0.5})
    case.check()


def test_rates_set_before_setup_count(arrays, globalState):
    var, other = arrays.var(np.ones(4, np.float32)), arrays.var(np.ones(4, np.float32))
    var.learnRate = 0
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net(a=var, b=other), globalState)
    arrays.put(var.grad, 1.0)
    arrays.put(other.grad, 1.0)
    optimizer.update()
    assert np.array_equal(arrays.get(var.data), np.ones(4))
    assert (arrays.get(other.data) > 1).all()


def test_negative_learn_rate_of_a_variable_freezes_it(arrays, globalState):
    case = Case(arrays, globalState)
    case.var("fc0.W").learnRate = -1.0
    case.step(frozen={"fc0.W"})
    case.check()


def test_learn_rate_of_the_optimizer_is_live(arrays, globalState):
    case = Case(arrays, globalState)
    case.step()
    case.optimizer.learnRate = 0.5
    case.step()
    # at zero the averages and the momentum go on
    case.optimizer.learnRate = 0
    case.step()
    case.check()


def test_frozen_everything(arrays, globalState):
    case = Case(arrays, globalState)
    for name in SHAPES:
        case.var(name).learnRate = 0
    case.step(frozen=set(SHAPES))
    case.check()
    assert case.optimizer.t == 1


def test_swapping_which_variable_is_frozen(arrays, globalState):
    case = Case(arrays, globalState)
    case.var("fc0.W").learnRate = 0
    case.step(frozen={"fc0.W"})
    case.var("fc0.W").learnRate, case.var("fc1.W").learnRate = 1.0, 0
    case.step(frozen={"fc1.W"})
    case.check()


# ---------------------------------------------------------------------------------------------- hooks


class Record(Hook):
    def __init__(self):
        self.seen = []

    def __call__(self, var, state, stream=None):
        self.seen.append((var, state))


def test_hooks_see_every_variable_with_its_own_state(arrays, globalState):
    case = Case(arrays, globalState)
    hook = Record()
    case.optimizer.addHook(hook)
    case.var("fc0.b").learnRate = 0
    case.step(frozen={"fc0.b"})
    assert {id(var) for var, _ in hook.seen} == {id(case.var(name)) for name in SHAPES}
    for var, state in hook.seen:
        assert all(array.shape == var.data.shape for array in state.values())


def test_hooks_run_before_the_step_in_their_order(arrays, globalState):
    case = Case(arrays, globalState)
    case.optimizer.addHook(lambda var, state, stream: arrays.put(var.grad, arrays.get(var.grad) + 1))
    case.optimizer.addHook(lambda var, state, stream: arrays.put(var.grad, arrays.get(var.grad) * 2))
    case.step(change=lambda name, grad, param: (grad + 1) * 2)
    case.check()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weight_decay_acts_in_both_modes(arrays, globalState, dtype):
    case = Case(arrays, globalState, dtype)
    case.optimizer.addHook(WeightDecay(0.1))
    case.var("fc0.W").wc, case.var("fc1.b").wc = 1.0, 0.5
    wc = {"fc0.W": 1.0, "fc1.b": 0.5}

    def decayed(name, grad, param):
        return (grad.astype(np.float64) - 0.1 * wc.get(name, 0.0) * param).astype(dtype)

    for _ in range(3):
        case.step(change=decayed)
    case.check(tolerance=2e-3 if dtype == "float16" else None)


@pytest.mark.parametrize("wc", [0.0, -1.0])
def test_no_weight_decay_unless_wc_is_above_zero(arrays, wc):
    var = arrays.var(np.array([np.inf, 2.0], np.float32))
    var.wc = wc
    WeightDecay(0.5)(var, {})
    assert not arrays.get(var.grad).any()


def test_weight_decay_for_gradients_of_the_loss():
    def trained(sign, **kwargs):
        var = Variable(gpuarray.to_gpu(np.ones(4, np.float32)))
        var.wc = 1.0
        optimizer = RMSPropGraves(**kwargs)
        optimizer.addHook(WeightDecay(0.1, **kwargs))
        optimizer.setupOn(Net(W=var))
        for _ in range(3):
            var.grad[:] = sign * np.arange(4)
            optimizer.update()
        return var.data

    assert np.array_equal(trained(1), trained(-1, gradOfLoss=True))


def test_a_hook_may_set_rates(arrays, globalState):
    case = Case(arrays, globalState)

    def freeze(var, state, stream):
        var.learnRate = 0

    case.optimizer.addHook(freeze)
    case.step(frozen=set(SHAPES))
    case.check()


def test_a_failing_hook_counts_no_step(arrays, globalState):
    case = Case(arrays, globalState)
    case.optimizer.addHook(lambda var, state, stream: 1 / 0)
    before = {name: arrays.get(case.var(name).data) for name in SHAPES}
    with pytest.raises(ZeroDivisionError):
        case.optimizer.update()
    assert case.optimizer.t == 0
    for name, content in before.items():
        assert np.array_equal(arrays.get(case.var(name).data), content)


# ----------------------------------------------------------------------- tied and self-updating variables


def test_tied_variables_are_updated_once(arrays, globalState):
    shared = arrays.var(np.ones((2, 2), np.float32))
    net = Net({"enc.W": shared, "dec.W": shared, "b": arrays.var(np.zeros(2, np.float32))})
    expected = Reference(np.ones((2, 2)))
    optimizer = RMSPropGraves()
    optimizer.setupOn(net, globalState)
    for _ in range(2):
        arrays.put(shared.grad, 0.5)
        optimizer.update()
        expected.step(np.full((2, 2), 0.5))
    assert_close(arrays.get(shared.data), expected.param, 1e-6)
    assert net.getVar("enc.W") is net.getVar("dec.W") is shared
    assert net.enc_W is net.dec_W is shared.data
    if not globalState:
        assert list(optimizer.states) == ["enc.W", "b"]


def test_updater_variables(arrays, globalState):
    calls = []
    own = arrays.variable(arrays.make(np.ones(3, np.float32)), updater=lambda var, learnRate: calls.append((var, learnRate)))
    normal = arrays.var(np.ones(3, np.float32))
    memory = own.data
    optimizer = RMSPropGraves(learnRate=0.5)
    optimizer.setupOn(Net(own=own, normal=normal), globalState)
    arrays.put(normal.grad, 1.0)
    optimizer.update()
    assert calls == [(own, 0.5)]
    assert optimizer.customVars == ["own"]
    assert own.data is memory
    assert not any("own" in str(key) for key in optimizer.states)
    optimizer.zeroGradParams()
    assert not arrays.get(normal.grad).any()


def test_only_updater_variables(globalState):
    calls = []
    own = Variable(gpuarray.zeros(3), updater=lambda var, learnRate: calls.append(learnRate))
    optimizer = RMSPropGraves()
    optimizer.setupOn(Net(own=own), globalState)
    optimizer.zeroGradParams()
    optimizer.update()
    assert calls == [1e-4]


# ----------------------------------------------------------------------------------------- re-binding


def test_setup_again_starts_clean(arrays):
    for before in (False, True):
        for after in (False, True):
            case = Case(arrays, before)
            case.step()
            case.optimizer.setupOn(case.net, after)
            assert case.optimizer.t == 0
            assert case.optimizer.globalState is after
            assert bool(case.optimizer.globalVar) is after
            assert len(case.optimizer.states) == (1 if after else len(SHAPES))
            case.expected = {name: Reference(arrays.get(case.var(name).data)) for name in SHAPES}
            case.step()
            case.check()


def test_setup_on_another_net_leaves_the_first_alone(arrays, globalState):
    case = Case(arrays, globalState)
    other = Net(x=arrays.var(np.ones(3, np.float32)))
    before = arrays.get(case.var("fc0.W").data)
    case.optimizer.setupOn(other, globalState)
    arrays.put(other.getVar("x").grad, 1.0)
    case.optimizer.update()
    assert np.array_equal(arrays.get(case.var("fc0.W").data), before)
    assert (arrays.get(other.getVar("x").data) > 1).all()


def test_a_failed_setup_changes_nothing(arrays, globalState):
    case = Case(arrays, globalState)
    case.step()
    broken = Net(x=arrays.var(np.ones(3, np.float32)), y=arrays.var(np.ones(3, np.float32), withgrad=False))
    data = broken.getVar("x").data
    with pytest.raises(VariableError, match="'y' has no gradient"):
        case.optimizer.setupOn(broken, True)
    assert broken.getVar("x").data is data
    assert case.optimizer.t == 1
    case.step()
    case.check()


def test_a_setvar_that_fails_leaves_a_net_that_works(arrays):
    class Refusing(Net):
        refuse = False

        def setVar(self, name, var):
            if self.refuse and name == "b":
                raise RuntimeError("not now")
            super().setVar(name, var)

    net = Refusing(a=arrays.var(np.ones(2, np.float32)), b=arrays.var(np.ones(2, np.float32)))
    net.refuse = True
    data = net.getVar("b").data
    optimizer = RMSPropGraves()
    with pytest.raises(RuntimeError, match="not now"):
        optimizer.setupOn(net, True)
    assert net.getVar("b").data is data
    assert optimizer.module is None
    for name in "ab":
        assert np.array_equal(arrays.get(net.getVar(name).data), np.ones(2))


def test_replaced_arrays_are_followed_in_local_mode(arrays):
    case = Case(arrays, False)
    case.step()
    var = case.var("fc0.W")
    var.grad = arrays.make(np.zeros(SHAPES["fc0.W"], np.float32))
    var.data = arrays.make(arrays.get(var.data))
    case.step()
    # and a variable that was replaced whole
    case.net.setVar("fc1.W", arrays.var(arrays.get(case.var("fc1.W").data)))
    case.step()
    case.check()


@pytest.mark.parametrize("what", ["data", "grad", "var"])
def test_replaced_arrays_are_refused_in_global_mode(arrays, what):
    case = Case(arrays, True)
    case.step()
    var = case.var("fc0.W")
    if what == "var":
        case.net.setVar("fc0.W", arrays.var(arrays.get(var.data)))
    else:
        setattr(var, what, arrays.make(arrays.get(getattr(var, what))))
    for call in (case.optimizer.update, case.optimizer.zeroGradParams):
        with pytest.raises(VariableError, match=r"'fc0.W'.*replaced after setupOn"):
            call()
    assert case.optimizer.t == 1


def test_two_optimizers_on_one_net(arrays):
    case = Case(arrays, True)
    second = RMSPropGraves()
    second.setupOn(case.net, True)
    with pytest.raises(VariableError, match="replaced after setupOn"):
        case.optimizer.update()
    second.update()


# ----------------------------------------------------------------------------------------- subclasses


class Adam(Optimizer):
    """A second optimizer, as a user would write it: state and rule, nothing else."""

    def __init__(self, alpha=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, nodeinfo=None):
        super().__init__(nodeinfo)
        self.setAttr("alpha", alpha)
        self.setAttr("beta1", beta1)
        self.setAttr("beta2", beta2)
        self.setAttr("epsilon", epsilon)

    def setupState(self, var):
        return {name: gpuarray.zeros(var.data.shape, dtype=var.data.dtype) for name in ("mg", "ms")}

    def updateVar(self, var, state, stream=None):
        mg, ms, grad = state["mg"], state["ms"], var.grad
        mg += (1 - self.beta1) * (grad - mg)
        ms += (1 - self.beta2) * (grad * grad - ms)
        rate = self.alpha * var.learnRate * np.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        var.data += np.float32(rate) * mg / (np.sqrt(ms) + self.epsilon)


def test_a_users_optimizer(globalState, tmp_path):
    rng = np.random.default_rng(0)
    params = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    net = Net({name: Variable(gpuarray.to_gpu(param)) for name, param in params.items()})
    net.getVar("fc0.b").learnRate = 0
    net.getVar("fc1.b").learnRate = 3.0
    optimizer = Adam()
    optimizer.setupOn(net, globalState)
    first, second = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for t in range(1, 6):
        for name in SHAPES:
            grad = rng.standard_normal(SHAPES[name]).astype(np.float32)
            net.getVar(name).grad[...] = grad
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad.astype(np.float64) ** 2
            if name != "fc0.b":
                rate = 1e-3 * (3.0 if name == "fc1.b" else 1.0) * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                params[name] = params[name] + rate * first[name] / (np.sqrt(second[name]) + 1e-8)
        optimizer.update()
    for name in SHAPES:
        assert_close(net.getVar(name).data, params[name], 1e-5, name)
    optimizer.save(tmp_path / "adam.hdf")
    other = Adam(alpha=7.0)
    other.setupOn(net, not globalState)
    other.load(tmp_path / "adam.hdf")
    assert (other.alpha, other.t) == (1e-3, 5)
    states = {slot.names[0]: slot.state for slot in other._slots}
    for slot in optimizer._slots:
        for entity, array in slot.state.items():
            assert np.array_equal(array, states[slot.names[0]][entity])


def test_an_overridden_update_var_is_called(arrays, globalState):
    class Counting(RMSPropGraves):
        calls = 0

        def updateVar(self, var, state, stream=None):
            self.calls += 1
            super().updateVar(var, state, stream)

    case = Case(arrays, globalState)
    case.optimizer = Counting(**case.hyper)
    case.optimizer.setupOn(case.net, globalState)
    case.step()
    case.check()
    assert case.optimizer.calls == (1 if globalState else len(SHAPES))


def test_update_var_alone(arrays):
    var = arrays.var(np.ones(5, np.float32))
    optimizer = RMSPropGraves()
    state = optimizer.setupState(var)
    arrays.put(var.grad, 2.0)
    optimizer.updateVar(var, state)
    expected = Reference(np.ones(5))
    expected.step(np.full(5, 2.0))
    assert_close(arrays.get(var.data), expected.param, 1e-6)


def test_a_base_optimizer_says_what_is_missing():
    optimizer = Optimizer()
    optimizer.setupOn(Net(x=Variable(gpuarray.zeros(2))))
    with pytest.raises(NotImplementedError, match="must define updateVar"):
        optimizer.update()
    assert optimizer.t == 0


def test_set_attr():
    optimizer = RMSPropGraves()
    optimizer.setAttr("epoch", 3)
    assert optimizer.epoch == 3
    assert optimizer.getAttrDict()["epoch"] == 3


# ------------------------------------------------------------------------------------------- nodeinfo


class Recording(NodeInfo):
    """A group of two whose other member's gradients are the given constant."""

    def __init__(self, arrays, other):
        super().__init__(index=0, gridsize=2)
        self.arrays, self.other, self.calls = arrays, other, []

    def broadcastBuffer(self, name, buffer):
        self.calls.append(("broadcast", name, buffer))

    def sumTensor(self, name, tensor):
        self.calls.append(("sum", name, tensor))
        self.arrays.put(tensor, (self.arrays.get(tensor) + self.other) / 2)


def test_nodeinfo_averages_after_the_hooks(arrays):
    rng = np.random.default_rng(0)
    net = Net({name: arrays.var(rng.standard_normal(shape).astype(np.float32)) for name, shape in SHAPES.items()})
    expected = {name: Reference(arrays.get(net.getVar(name).data)) for name in SHAPES}
    nodeinfo = Recording(arrays, other=3.0)
    optimizer = RMSPropGraves(nodeinfo=nodeinfo)
    optimizer.setupOn(net, useGlobalState=True)
    flat = optimizer.globalVar[np.dtype("float32")]
    ((what, name, buffer),) = nodeinfo.calls
    assert (what, name) == ("broadcast", "data")
    # PuzzleLib's CUDA arrays hand over their memory, as its own optimizer does
    assert buffer is (flat.data.gpudata if arrays.name == "puzzlelib-cuda" else flat.data)
    optimizer.addHook(lambda var, state, stream: arrays.put(var.grad, 1.0))
    optimizer.update()
    ((what, name, tensor),) = nodeinfo.calls[1:]
    assert (what, name) == ("sum", "grad")
    assert tensor is flat.grad
    for name in SHAPES:
        expected[name].step(np.full(SHAPES[name], 2.0))
        assert_close(arrays.get(net.getVar(name).data), expected[name].param, 2e-6, name)


def test_nodeinfo_needs_global_state_and_no_updaters():
    optimizer = RMSPropGraves(nodeinfo=NodeInfo())
    with pytest.raises(SetupError, match="needs global state"):
        optimizer.setupOn(Net(x=Variable(gpuarray.zeros(2))))
    with pytest.raises(VariableError, match="'x' has an updater"):
        optimizer.setupOn(Net(x=Variable(gpuarray.zeros(2), updater=print)), useGlobalState=True)


def test_a_group_of_one():
    node = NodeInfo()
    assert (node.index, node.gridsize, node.device, node.meanValue(2.5)) == (0, 1, 0, 2.5)
    var = Variable(gpuarray.to_gpu(np.ones(3, np.float32)))
    optimizer = RMSPropGraves(nodeinfo=node)
    optimizer.setupOn(Net(x=var), useGlobalState=True)
    var.grad[:] = 1
    optimizer.update()
    assert (var.data > 1).all()
    node.close()


# ------------------------------------------------------------------------------------------- variables


def test_variable():
    var = Variable(gpuarray.zeros((2, 3)))
    assert var.grad.shape == (2, 3)
    assert (var.learnRate, var.momRate, var.wc) == (1.0, 1.0, 0.0)
    assert not var.hasUpdater
    assert not var.hasPostUpdater
    assert int(Variable(gpuarray.zeros(1)).name) == int(var.name) + 1, "numbered"
    assert Variable(gpuarray.zeros(1), withgrad=False).grad is None
    grad = gpuarray.zeros(1)
    assert Variable(gpuarray.zeros(1), grad=grad).grad is grad


def test_variable_updaters():
    calls = []
    var = Variable(gpuarray.zeros(1), updater=lambda v, rate: calls.append((v, rate)), postUpdater=calls.append)
    assert var.grad is None
    assert var.hasUpdater
    assert var.hasPostUpdater
    var.update(0.5)
    var.postUpdate()
    assert calls == [(var, 0.5), var]
    for call in (lambda: Variable(gpuarray.zeros(1)).update(1), Variable(gpuarray.zeros(1)).postUpdate):
        with pytest.raises(Error, match=r"has no (u|postU)pdater"):
            call()


def test_variable_set(arrays):
    first, second = Variable(arrays.make(np.zeros(3, np.float32))), Variable(arrays.make(np.ones(3, np.float32)))
    arrays.put(second.grad, 2.0)
    data = first.data
    first.set(second)
    assert first.data is data
    assert np.array_equal(arrays.get(first.data), np.ones(3))
    assert np.array_equal(arrays.get(first.grad), np.full(3, 2.0))


def test_global_eval_mode_makes_no_gradients():
    from puzzlelib_rmsprop import Config

    Config.globalEvalMode = True
    assert Variable(gpuarray.zeros(2)).grad is None
