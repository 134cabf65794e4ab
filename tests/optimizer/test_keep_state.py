"""setupOn(net, keepState=True) keeps the state of the remaining variables when a net has grown or shrunk."""

import numpy as np
import pytest

from puzzlelib_rmsprop import NodeInfo, Optimizer, RMSPropGraves, Variable
from puzzlelib_rmsprop.errors import ArrayError, CheckpointWarning, SetupError
from tests.conftest import ARRAYS
from tests.reference import Reference
from tests.standins import Net
from tests.tolerances import TOLERANCE, assert_close

OWN = ARRAYS["own"]


def value(name, shape, seed):
    return np.random.default_rng([seed, *name.encode()]).standard_normal(shape).astype(np.float32)


def grow(arrays, net, shapes):
    """Gives the net variables of these names; existing ones are kept."""
    for name in [name for name in net.vars if name not in shapes]:
        del net.vars[name]
    for name, shape in shapes.items():
        if name not in net.vars:
            net.vars[name] = arrays.var(value(name, shape, 99))
    return net


def step(arrays, net, optimizer, seed, references=()):
    for name, var in net.vars.items():
        grad = value(name, tuple(var.grad.shape), seed)
        arrays.put(var.grad, grad)
        if name in references:
            references[name].step(grad, learnRate=0.01)
    optimizer.update()


@pytest.mark.parametrize("after", [False, True], ids=["to local", "to global"])
def test_a_net_that_grows_and_shrinks(arrays, globalState, after):
    """Compared with the rule in float64: changes to the net do not affect the remaining variables."""
    net, optimizer = Net({}), RMSPropGraves(learnRate=0.01)
    grow(arrays, net, {"b": (3,), "d": (2, 2), "f": (4,)})
    references = {name: Reference(arrays.get(var.data)) for name, var in net.vars.items()}
    optimizer.setupOn(net, globalState)
    for seed in range(4):
        step(arrays, net, optimizer, seed, references)
    grow(arrays, net, {"a": (5,), "b": (3,), "c": (1, 7), "f": (4,)})
    references |= {name: Reference(arrays.get(net.getVar(name).data)) for name in ("a", "c")}
    optimizer.setupOn(net, after, keepState=True)
    assert optimizer.t == 4
    for seed in range(4, 8):
        step(arrays, net, optimizer, seed, references)
    assert sorted(v.name for v in optimizer._variables) == ["a", "b", "c", "f"]
    for variable in optimizer._variables:
        found = {"param": variable.var.data, **variable.state}
        for buffer, expected in references[variable.name].buffers().items():
            assert_close(arrays.get(found[buffer]), expected, TOLERANCE["float32"][buffer], f"{variable.name}: {buffer}")


def test_without_it_everything_starts_anew(globalState):
    net, optimizer = grow(OWN, Net({}), {"w": (3,)}), RMSPropGraves()
    optimizer.setupOn(net, globalState)
    step(OWN, net, optimizer, 0)
    optimizer.setupOn(net, globalState)
    assert optimizer.t == 0
    assert not optimizer._variables[0].state["mg"].get().any()


def test_another_shape_starts_anew_and_is_named(globalState):
    net, optimizer = grow(OWN, Net({}), {"w": (3,), "b": (2,)}), RMSPropGraves()
    optimizer.setupOn(net, globalState)
    step(OWN, net, optimizer, 0)
    kept = {v.name: v.state["delta"].get() for v in optimizer._variables}
    net.vars["w"] = OWN.var(np.zeros(5, np.float32))
    message = r"variable 'w': its state was reset: it had shape \(3,\) and dtype float32, and now has \(5,\) and float32"
    with pytest.warns(CheckpointWarning, match=message):
        optimizer.setupOn(net, globalState, keepState=True)
    found = {v.name: v.state["delta"].get() for v in optimizer._variables}
    assert np.array_equal(found["b"], kept["b"])
    assert found["w"].shape == (5,)
    assert not found["w"].any()


def test_what_hooks_keep_and_factors_stay(globalState):
    class Kept:
        def __call__(self, var, state, stream=None):
            state.setdefault("calls", np.zeros(1, np.float32))
            state["calls"] += 1

    net, optimizer = grow(OWN, Net({}), {"w": (3,)}), RMSPropGraves(masterWeights=True)
    optimizer.addHook(Kept())
    optimizer.setupOn(net, globalState)
    for seed in range(3):
        step(OWN, net, optimizer, seed)
    if globalState:
        optimizer.globalVar[np.float32].learnRate = 0.5
    grow(OWN, net, {"w": (3,), "x": (2,)})
    optimizer.setupOn(net, globalState, keepState=True)
    step(OWN, net, optimizer, 3)
    calls = {v.name: float(np.asarray(v.state["calls"])[0]) for v in optimizer._variables}
    assert calls == {"w": 4.0, "x": 1.0}
    if globalState:
        assert optimizer.globalVar[np.float32].learnRate == 0.5


def test_state_that_is_one_for_all(globalState):
    class Counting(Optimizer):
        def setupState(self, var):
            return {"count": OWN.make(np.zeros(1, np.float32)), "all": OWN.make(np.zeros(var.data.shape, np.float32))}

        def updateVar(self, var, state, stream=None):
            state["count"] += 1
            state["all"] += var.grad

    net, optimizer = grow(OWN, Net({}), {"w": (3,)}), Counting()
    optimizer.setupOn(net, globalState)
    step(OWN, net, optimizer, 0)
    grow(OWN, net, {"w": (3,), "x": (2,)})
    optimizer.setupOn(net, globalState, keepState=True)
    by_name = {v.name: v.state for v in optimizer._variables}
    assert float(by_name["w"]["count"].get()[0]) == 1.0
    assert np.array_equal(by_name["w"]["all"].get(), value("w", (3,), 0))


def test_the_first_time_there_is_nothing_to_keep(globalState):
    optimizer = RMSPropGraves()
    optimizer.setupOn(grow(OWN, Net({}), {"w": (3,)}), globalState, keepState=True)
    assert optimizer.t == 0


def test_another_net_is_refused(globalState):
    net, optimizer = grow(OWN, Net({}), {"w": (3,)}), RMSPropGraves()
    optimizer.setupOn(net, globalState)
    step(OWN, net, optimizer, 0)
    with pytest.raises(
        SetupError, match="keepState=True, but the net has none of the previous variables: 'w'; call setupOn"
    ):
        optimizer.setupOn(grow(OWN, Net({}), {"x": (3,)}), globalState, keepState=True)
    assert (optimizer.t, optimizer.module) == (1, net)
    step(OWN, net, optimizer, 1)


def test_state_in_parts_is_refused():
    class One(NodeInfo):
        def allgatherObject(self, value):
            return [value]

    net = grow(OWN, Net({}), {"w": (3,)})
    optimizer = RMSPropGraves(nodeinfo=One(), shardState=True)
    optimizer.setupOn(net, True)
    with pytest.raises(SetupError, match=r"the state is sharded, one part per process: save\(\) it, and load\(\) it after"):
        optimizer.setupOn(net, True, keepState=True)


def test_factors_go_into_the_rates_in_local_mode():
    """Variables frozen by globalVar stay frozen."""
    net, optimizer = grow(OWN, Net({}), {"w": (3,)}), RMSPropGraves()
    optimizer.setupOn(net, True)
    optimizer.globalVar[np.float32].learnRate = 0
    optimizer.setupOn(net, False, keepState=True)
    assert net.getVar("w").learnRate == 0
    before = OWN.get(net.getVar("w").data)
    step(OWN, net, optimizer, 0)
    assert np.array_equal(OWN.get(net.getVar("w").data), before)


def test_what_a_hook_keeps_has_to_be_an_array():
    net, optimizer = grow(OWN, Net({}), {"w": (3,)}), RMSPropGraves()
    optimizer.setupOn(net)
    optimizer.states["w"]["n"] = 3
    with pytest.raises(ArrayError, match="variable 'w': its 'n': arrays must come from"):
        optimizer.setupOn(net, keepState=True)


def test_variables_of_a_list_are_found_whatever_their_place(globalState):
    def made(value):
        return Variable(np.zeros(2, np.float32), grad=np.full(2, value, np.float32))

    first, second, third = made(1.0), made(3.0), made(5.0)
    optimizer = RMSPropGraves()
    optimizer.setupOn([first, second], globalState)
    optimizer.update()
    optimizer.setupOn([third, second, first], globalState, keepState=True)
    mean = {id(v.var): float(v.state["mg"][0]) for v in optimizer._variables}
    assert mean == {id(first): pytest.approx(0.05), id(second): pytest.approx(0.15), id(third): 0.0}
    optimizer.setupOn([second], globalState, keepState=True)
    assert float(optimizer._variables[0].state["mg"][0]) == pytest.approx(0.15)
    optimizer.setupOn({"renamed": second}, globalState, keepState=True)
    assert float(optimizer._variables[0].state["mg"][0]) == pytest.approx(0.15)
