"""setupOn: states and flat buffers, setting up again, and arrays that are replaced afterwards."""

import numpy as np
import pytest

from puzzlelib_rmsprop import RMSPropGraves
from puzzlelib_rmsprop.errors import VariableError
from tests.optimizer.case import SHAPES, Case
from tests.reference import Reference
from tests.standins import Net


def test_local_states(arrays):
    case = Case(arrays, False)
    assert list(case.optimizer.states) == list(SHAPES)
    for name, state in case.optimizer.states.items():
        assert list(state) == ["mg", "variance", "delta"]
        for array in state.values():
            assert type(array) is arrays.made(case.var(name).data)
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
    # a view: the variable shows what is written into the flat buffer
    arrays.put(flat.data, np.arange(arrays.shape(flat.data)[0], dtype=np.float32))
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
    # and a variable that was replaced as a whole
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
