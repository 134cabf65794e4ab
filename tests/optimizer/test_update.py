"""update and zeroGradParams: every variable takes the step of the reference, in both modes."""

import copy
import pickle
import threading

import numpy as np
import pytest

from puzzlelib_rmsprop import GradientClipping, RMSPropGraves, Variable, gpuarray
from tests.optimizer.case import SHAPES, Case
from tests.reference import Reference
from tests.refused import picture, ready, var
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close


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
    # a step along the gradient of minus the loss is added, along that of the loss subtracted: the result is the same
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


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_no_floating_point_error_where_a_program_asks_for_them(globalState, dtype):
    with np.errstate(all="raise"):
        for rate, scale in ((0.0, 1.0), (1.2e-38, 1e-3), (1e-30, 0.0), (1e-4, 1.0)):
            net = Net({"W": Variable(np.ones(5, dtype))})
            optimizer = RMSPropGraves(rate, alpha=1e-40, momRate=1e-320)
            optimizer.setupOn(net, globalState)
            net.getVar("W").learnRate = 1e-10 if rate == 1e-30 else 1.0
            net.getVar("W").grad[...] = scale
            optimizer.update()
            optimizer.zeroGradParams()


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("options", [{}, {"stateDtype": "bfloat16", "seed": 3}], ids=["float32", "bfloat16"])
def test_a_copy_of_an_optimizer_has_memory_of_its_own(how, options):
    net, optimizer = Net(W=var(), b=var((2,))), RMSPropGraves(0.1, **options)
    optimizer.setupOn(net)
    optimizer.addHook(GradientClipping(0.5))
    optimizer.update()
    twin = how(optimizer)
    before = picture(net), picture(optimizer)
    twin.update()
    assert (picture(net), picture(optimizer)) == before
    optimizer.update()
    for name, each in net.vars.items():
        assert each.data.tobytes() == twin.module.getVar(name).data.tobytes()
        assert optimizer.states[name]["variance"].tobytes() == twin.states[name]["variance"].tobytes()


def test_a_state_put_in_place_as_a_whole_is_used():
    _, optimizer = ready(W=var())
    optimizer.states["W"] = {name: gpuarray.zeros(3) for name in ("mg", "variance", "delta")}
    optimizer.update()
    assert (optimizer.states["W"]["variance"] > 0).all()


def test_optimizers_of_two_threads():
    # one net per thread: the results equal those of a single thread
    pairs = [ready(W=var((1000,))) for _ in range(4)]
    threads = [threading.Thread(target=lambda o=o: [o.update() for _ in range(50)]) for _, o in pairs[1:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(50):
        pairs[0][1].update()
    assert len({net.getVar("W").data.tobytes() for net, _ in pairs}) == 1


@pytest.mark.parametrize("given", [None, 0, gpuarray.Stream(), object()], ids=lambda given: type(given).__name__)
def test_a_stream_is_nothing_to_the_cpu_but_hooks_get_it(globalState, given):
    # as in PuzzleLib, so that one script serves both backends
    seen = []
    var = Variable(np.zeros(3, np.float32), grad=np.ones(3, np.float32))
    optimizer = RMSPropGraves(learnRate=0.5)
    optimizer.addHook(lambda var, state, stream: seen.append(stream))
    optimizer.setupOn(Net(W=var), globalState)
    optimizer.update(stream=given)
    assert var.data.all()
    assert seen == [given]
    optimizer.zeroGradParams(stream=given)
    assert not var.grad.any()
